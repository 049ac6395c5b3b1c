"""Data sets of picture files: each is read as it lies on disk, checked against torchvision's own reader where it has one."""

import json
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

import fedact
from fedact.cli.plan import prepared
from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.data import DATASETS, Examples, Request
from fedact.data.pictures import FORMATS, SUFFIXES, Pictures, decode
from fedact.federation import server
from fedact.models import pretraining
from fedact.simulate import main
from fedact.training.workspace import prepare, prepare_with
from tests.support.picture_sets import (
    CLASSES,
    write_cub,
    write_flowers,
    write_folder,
    write_imagenet,
    write_pets,
    write_picture,
)
from tests.support.stopping import stopping_after


def read(name: str, path: Path, seed: int = 0):
    return DATASETS[name](Request(path, None, None, np.random.default_rng(seed), side=16))


def pairs(examples: Examples) -> list[tuple[str, int]]:
    """Return each picture's path and label, in order."""
    images = examples.images
    pictures, rows = (images, range(len(images))) if isinstance(images, Pictures) else (images.array, images.rows)
    return [
        (str(pictures.root / pictures.files[row]), label) for row, label in zip(rows, examples.labels.tolist(), strict=True)
    ]


@pytest.fixture
def no_download(monkeypatch):
    def never(*arguments, **settings):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", never)


@pytest.mark.parametrize("name", ["imagenet", "folder"])
def test_folders_of_classes_are_read_as_torchvision_reads_them(tmp_path, name):
    source = read(name, write_imagenet(tmp_path))
    for examples, part in ((source.train, "train"), (source.test, "val")):
        assert pairs(examples) == datasets.ImageFolder(tmp_path / part).samples
    assert (source.classes, source.names) == (3, CLASSES)
    assert source.train.labels.dtype == np.int64
    assert source.train.images[np.array([0])].shape == (1, 16, 16, 3)


def test_what_is_no_picture_or_hidden_is_passed_over(tmp_path):
    expected = pairs(read("imagenet", write_imagenet(tmp_path)).train)
    (tmp_path / "train" / CLASSES[0] / "Thumbs.db").write_text("")
    (tmp_path / "train" / CLASSES[0] / "._n01440764_0.JPEG").write_text("")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "LOC_synset_mapping.txt").write_text("")
    assert pairs(read("imagenet", tmp_path).train) == expected


def test_pictures_in_folders_of_a_class_are_the_classs_as_torchvision_reads_them(tmp_path):
    folder = write_imagenet(tmp_path)
    for place, name in enumerate(("sub/a.jpg", "sub/deeper/b.png", "c.JPG", "sub 2/d.tif")):
        write_picture(folder / "train" / CLASSES[0] / name, place)
    read_here, read_there = pairs(read("folder", folder).train), datasets.ImageFolder(folder / "train").samples
    assert sorted(read_here) == sorted(read_there)
    assert len(read_here) == 3 * len(CLASSES) + 4


def test_every_ending_of_a_format_that_is_read_is_a_pictures(tmp_path):
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert {ending for ending in endings if not ending.endswith(SUFFIXES)} <= {".pfm", ".jpc", ".jpf", ".j2c", ".avifs"}
    picture = Image.fromarray(np.zeros((20, 20, 3), np.uint8))
    written = set()
    for ending in SUFFIXES:
        if Image.registered_extensions().get(ending) in Image.SAVE:
            file = tmp_path / "train" / "a" / f"x{ending.upper()}"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
            assert decode(file, 8).shape == (8, 8, 3)
            written.add(file.name)
    write_picture(tmp_path / "train" / "b" / "y.png", 0)
    files = [
        Path(file).name
        for file, label in pairs(read("folder", shutil.copytree(tmp_path / "train", tmp_path / "val").parent).train)
    ]
    assert {*files} == {*written, "y.png"}
    assert {"x.JFIF", "x.AVIF", "x.JP2", "x.APNG"} <= written


def test_what_is_left_out_is_said_in_one_line_with_an_example(tmp_path, caplog):
    write_imagenet(tmp_path)
    read("imagenet", tmp_path)
    assert not caplog.messages
    for name in ("notes.txt", "n01440764/sub/b.heic", "n01440764/a.HEIC", "n01440764/.DS_Store"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"?")
    read("imagenet", tmp_path)
    assert caplog.messages == [f"{tmp_path / 'train'}: 3 files are left out as no pictures, such as n01440764/a.HEIC"]


def test_a_link_in_a_class_that_leads_back_is_refused(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "train" / CLASSES[0] / "again").symlink_to(tmp_path / "train" / CLASSES[0])
    with pytest.raises(ConfigError, match="leads back to"):
        read("folder", tmp_path)


def test_a_folder_may_be_tested_on_test(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    assert pairs(read("folder", tmp_path).test) == datasets.ImageFolder(tmp_path / "test").samples
    with pytest.raises(ConfigError, match="no folder val"):
        read("imagenet", tmp_path)


def test_of_classes_alone_a_stratified_quarter_is_for_testing_and_follows_the_seed(tmp_path):
    write_folder(tmp_path, 8, ".png")
    source, same, other = (read("folder", tmp_path, seed) for seed in (0, 0, 1))
    assert sorted(pairs(source.train) + pairs(source.test)) == datasets.ImageFolder(tmp_path).samples
    assert np.bincount(source.test.labels).tolist() == [2, 2, 2]
    assert pairs(source.test) == pairs(same.test) != pairs(other.test)


def test_cub_is_dealt_as_its_lists_say(tmp_path):
    folder = write_cub(tmp_path) / "images"
    source = read("cub200", tmp_path)
    first, second = folder / "001.Black_footed_Albatross", folder / "002.Laysan_Albatross"
    places = [(str(first / f"bird_{place}.jpg"), 0) for place in (0, 1)]
    assert pairs(source.train) == places + [(str(second / f"bird_{place}.jpg"), 1) for place in (0, 1)]
    assert pairs(source.test) == [(str(first / "bird_2.jpg"), 0), (str(second / "bird_2.jpg"), 1)]
    assert source.names == ("Black footed Albatross", "Laysan Albatross")
    assert source.classes == 2


def test_flowers_are_read_as_torchvision_reads_them(tmp_path, monkeypatch):
    write_flowers(tmp_path)
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *arguments: True)
    theirs = [datasets.Flowers102(tmp_path, split) for split in ("train", "val", "test")]
    train, val, test = ([(str(f), y) for f, y in zip(d._image_files, d._labels, strict=True)] for d in theirs)
    source = read("flowers102", tmp_path)
    assert (pairs(source.train), pairs(source.test)) == (train + val, test)
    assert (source.classes, len(source.names), source.names[76]) == (102, 102, "passion flower")


def test_pets_are_read_as_torchvision_reads_them(tmp_path):
    write_pets(tmp_path)
    source = read("pets", tmp_path)
    for examples, split in ((source.train, "trainval"), (source.test, "test")):
        theirs = datasets.OxfordIIITPet(tmp_path, split)
        assert pairs(examples) == [(str(file), label) for file, label in zip(theirs._images, theirs._labels, strict=True)]
        assert sorted({source.names[label] for label in examples.labels}) == sorted(theirs.classes)
    assert (source.classes, len(source.names)) == (37, 37)


@pytest.mark.parametrize(("name", "kind"), [("flowers102", "Flowers102"), ("pets", "OxfordIIITPet")])
def test_what_is_missing_is_left_to_torchvision(tmp_path, monkeypatch, name, kind):
    write = {"flowers102": write_flowers, "pets": write_pets}[name]

    def download(root, download):
        assert download
        write(root)

    monkeypatch.setattr(datasets, kind, type(kind, (), {"__new__": lambda cls, *a, **k: download(*a, **k), "classes": []}))
    assert len(read(name, tmp_path).test) > 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flowers102", ("102flowers.tgz", "imagelabels.mat", "setid.mat", "flowers-102")),
        ("pets", ("images.tar.gz", "annotations.tar.gz", "oxford-iiit-pet")),
        ("cub200", ("CUB_200_2011.tgz", "https://")),
        ("imagenet", ("no folder train", "val/<wnid>/")),
        ("folder", ("cannot be read as a folder",)),
    ],
)
def test_what_is_missing_is_said_with_what_to_put_where(tmp_path, no_download, name, words):
    with pytest.raises(ConfigError) as caught:
        read(name, tmp_path / "nothing")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in (*words, str(tmp_path / "nothing")))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def flatten(folder: Path) -> None:
    empty(folder)
    write_picture(folder / "ILSVRC2012_val_00000001.JPEG", 1)


WRONG_FOLDERS = {
    "no val": (lambda root: shutil.rmtree(root / "val"), "imagenet", "no folder val"),
    "no train": (lambda root: shutil.rmtree(root / "train"), "folder", "has a folder val, but no train"),
    "nothing to test": (lambda root: shutil.rmtree(root / "val"), "folder", "has a folder train, but neither val nor test"),
    "an empty class": (lambda root: empty(root / "train" / CLASSES[1]), "imagenet", f"class {CLASSES[1]} is empty"),
    "a class of other files": (
        lambda root: (empty(root / "val" / CLASSES[1]), (root / "val" / CLASSES[1] / "a.txt").write_text("")),
        "folder",
        f"class {CLASSES[1]} is empty",
    ),
    "a class that val lacks": (
        lambda root: shutil.rmtree(root / "val" / CLASSES[2]),
        "folder",
        f"train has class {CLASSES[2]}, which .*val lacks",
    ),
    "a class that train lacks": (
        lambda root: (root / "val" / "n99").mkdir(),
        "imagenet",
        "val has class n99, which .*train lacks",
    ),
    "a flat val": (lambda root: flatten(root / "val"), "imagenet", "parse_val_archive"),
    "a flat val elsewhere": (lambda root: flatten(root / "val"), "folder", "at least two classes: there is none"),
    "no classes": (lambda root: empty(root / "train"), "imagenet", "at least two classes: there is none"),
    "one class": (
        lambda root: [shutil.rmtree(root / part / name) for part in ("train", "val") for name in CLASSES[1:]],
        "folder",
        f"only {CLASSES[0]}",
    ),
    "a file": (lambda root: (shutil.rmtree(root), root.write_text("")), "folder", "cannot be read as a folder"),
}


@pytest.mark.parametrize(("harm", "name", "said"), WRONG_FOLDERS.values(), ids=WRONG_FOLDERS.keys())
def test_folders_that_are_no_data_set_are_refused(tmp_path, harm, name, said):
    root = write_imagenet(tmp_path / "data")
    harm(root)
    with pytest.raises(ConfigError, match=said) as caught:
        read(name, root)
    assert "\n" not in str(caught.value)


WRONG_CUB = {
    "a missing list": (lambda f: (f / "train_test_split.txt").unlink(), "train_test_split.txt cannot be read: No such"),
    "an empty list": (lambda f: (f / "classes.txt").write_text("\n"), "classes.txt is empty"),
    "a binary list": (lambda f: (f / "classes.txt").write_bytes(b"\xff\xfe\x00"), "it is no text"),
    "a short line": (lambda f: edit(f / "images.txt", "1 001", "1"), r"'1\.Black|'1'|words"),
    "a label too large": (lambda f: edit(f / "image_class_labels.txt", "3 1", "3 3"), "'3', where a number from 1 to 2"),
    "a label of words": (lambda f: edit(f / "image_class_labels.txt", "3 1", "3 wren"), "'wren'"),
    "no label": (lambda f: edit(f / "image_class_labels.txt", "3 1\n", ""), "says nothing of picture 3"),
    "a split of 2": (lambda f: edit(f / "train_test_split.txt", "3 0", "3 2"), "'2', where a number from 0 to 1"),
    "a missing picture": (lambda f: next(f.rglob("bird_1.jpg")).unlink(), r"images\.txt names .*bird_1\.jpg, which is not"),
    "nothing to test": (
        lambda f: (f / "train_test_split.txt").write_text("".join(f"{key} 1\n" for key in range(1, 7))),
        "names no picture",
    ),
}


@pytest.mark.parametrize(("harm", "said"), WRONG_CUB.values(), ids=WRONG_CUB.keys())
def test_birds_whose_lists_do_not_fit_are_refused(tmp_path, harm, said):
    harm(write_cub(tmp_path))
    with pytest.raises(ConfigError, match=said) as caught:
        read("cub200", tmp_path)
    assert "\n" not in str(caught.value)


def save_labels(folder: Path, labels) -> None:
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels])})


WRONG_FLOWERS = {
    "no matlab file": (lambda f: (f / "setid.mat").write_text("text"), "setid.mat cannot be read as Matlab's"),
    "an empty file": (lambda f: (f / "setid.mat").write_bytes(b""), "setid.mat cannot be read as Matlab's"),
    "another array": (lambda f: savemat(f / "setid.mat", {"x": [1]}), "cannot be read as Matlab's trnid: 'trnid'"),
    "labels from 0": (lambda f: save_labels(f, [0] * 8), "labels in .* whole numbers from 1 to 102"),
    "labels to 103": (lambda f: save_labels(f, [103] * 8), "labels in .* whole numbers from 1 to 102"),
    "labels of halves": (lambda f: save_labels(f, [1.5] * 8), "whole numbers"),
    "labels of words": (lambda f: save_labels(f, ["a"] * 8), "imagelabels.mat"),
    "labels not finite": (lambda f: save_labels(f, [np.nan] * 8), "whole numbers"),
    "too few labels": (lambda f: save_labels(f, [1] * 7), "tstid in .* whole numbers from 1 to 7"),
    "a missing picture": (lambda f: (f / "jpg" / "image_00004.jpg").unlink(), r"names .*image_00004\.jpg, which is not"),
}


@pytest.mark.parametrize(("harm", "said"), WRONG_FLOWERS.values(), ids=WRONG_FLOWERS.keys())
def test_flowers_whose_labels_do_not_fit_are_refused(tmp_path, harm, said):
    harm(write_flowers(tmp_path))
    with pytest.raises(ConfigError, match=said) as caught:
        read("flowers102", tmp_path)
    assert "\n" not in str(caught.value)


WRONG_PETS = {
    "a label too large": (
        lambda f: edit(f / "annotations/test.txt", "_3 1 ", "_3 38 "),
        "'38', where a number from 1 to 37",
    ),
    "a label of 0": (lambda f: edit(f / "annotations/test.txt", "_3 1 ", "_3 0 "), "'0'"),
    "a name alone": (
        lambda f: edit(f / "annotations/test.txt", "_3 1 1 1", "_3"),
        "'Abyssinian_3', where each is of 2 words",
    ),
    "a missing picture": (lambda f: next(f.rglob("Egyptian_Mau_2.jpg")).unlink(), r"trainval\.txt names .*Mau_2\.jpg"),
}


@pytest.mark.parametrize(("harm", "said"), WRONG_PETS.values(), ids=WRONG_PETS.keys())
def test_pets_whose_lists_do_not_fit_are_refused(tmp_path, harm, said):
    harm(write_pets(tmp_path))
    with pytest.raises(ConfigError, match=said):
        read("pets", tmp_path)


RUN = [
    "--clients", "2", "--budget", "none", "--method", "vanilla", "--layers", "1", "--weights", "none", "--width", "0.1",
    "--resolution", "16", "--partition", "iid", "--calibration", "4", "--threads", "1", "--lr", "0.02",
]  # fmt: skip


def rows(folder: Path) -> list[dict]:
    """Return what a run recorded, but for its times."""
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines if row["kind"] != "run"]


def test_a_stopped_run_on_a_folder_goes_on_from_anywhere_without_decoding_again(tmp_path, monkeypatch):
    write_folder(tmp_path / "data", 20, ".png", shades=True)
    monkeypatch.chdir(tmp_path)
    command = [*RUN, "--dataset", "folder", "--data-dir", "data", "--max-examples", "40", "--rounds", "2"]
    assert main([*command, "--out", "whole"]) == 0
    monkeypatch.setattr("fedact.data.pictures.decode", lambda *arguments: pytest.fail("a picture was decoded again"))
    with monkeypatch.context() as stopped:
        stopped.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
        assert main([*command, "--out", "run"]) == 130
    monkeypatch.chdir(tmp_path / "data")
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert fedact.load_run(tmp_path / "run").rounds["round"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("harm", ["a broken picture", "a missing class"])
def test_a_run_on_a_broken_folder_is_refused_in_one_line_before_anything_is_written(tmp_path, capsys, harm):
    data = write_imagenet(tmp_path / "data", 12, 4)
    wrong = data / "train" / CLASSES[0] / f"{CLASSES[0]}_3.JPEG"
    if harm == "a broken picture":
        wrong.write_bytes(wrong.read_bytes()[:200])
    else:
        shutil.rmtree(data / "val" / CLASSES[1])
    assert main([*RUN, "--dataset", "imagenet", "--data-dir", str(data), "--out", str(tmp_path / "out")]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("fedact: ")
    assert (str(wrong) if harm == "a broken picture" else CLASSES[1]) in line
    assert not (tmp_path / "out").exists()


def test_only_the_examples_of_a_run_are_decoded(tmp_path, monkeypatch):
    seen: list[Path] = []
    real = fedact.data.pictures.decode
    monkeypatch.setattr("fedact.data.pictures.decode", lambda file, side: (seen.append(file), real(file, side))[1])
    settings = {"dataset": "imagenet", "data_dir": write_imagenet(tmp_path, 20, 20), "weights": "none", "width": 0.1}
    settings |= {"max_examples": 24, "max_test_examples": 6, "resolution": 16, "calibration": 4, "clients": 2}
    experiment = prepare(make_config(settings)).experiment
    assert len(seen) == len(set(seen)) == 30
    assert np.bincount(experiment.test.labels).tolist() == [2, 2, 2]
    expected = np.stack([real(file, 16) for file in sorted(file for file in seen if "val" in file.parts)])
    assert np.array_equal(np.asarray(experiment.test.images), expected)


SMALL = {"dataset": "imagenet", "width": 0.1, "resolution": 16, "calibration": 4, "clients": 2, "partition": "iid"}


def test_a_device_alone_reads_the_pictures_that_the_server_deals_it(tmp_path):
    config = make_config({**SMALL, "weights": "none", "data_dir": write_imagenet(tmp_path, 20)})
    server = prepare(config).experiment
    device = prepare_with(server.config, server.start, server.preprocessing).experiment
    assert np.array_equal(np.asarray(device.train.images), np.asarray(server.train.images))
    assert np.array_equal(device.train.labels, server.train.labels)


def test_a_plan_for_many_pixels_has_pictures_of_so_many_though_fewer_are_pretrained_on(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(pretraining, "_train", lambda model, loader, *_: trained.append(loader(np.array([0]))[0].shape))
    settings = {**SMALL, "data_dir": write_imagenet(tmp_path, 20, 8), "resolution": 96}
    experiment = prepared(make_config(settings)).experiment
    assert trained == [(1, 3, 64, 64)]
    assert experiment.calibration.images.shape == (4, 96, 96, 3)
    originals = {decode(file, 96).tobytes() for file in (tmp_path / "train").rglob("*.JPEG")}
    assert {picture.tobytes() for picture in experiment.calibration.images[:]} <= originals


def test_the_list_shows_the_data_sets(capsys):
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in DATASETS)
