"""Data sets of Hugging Face, offline: saved folders and parquet files, columns by their types, splits, clients."""

import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Value

import fedact
from fedact.config.errors import ConfigError
from fedact.config.hub import absolute_hub, hub_label, hub_on_device, parse_hub
from fedact.config.loading import make_config
from fedact.data import Request, decode_files
from fedact.data.own import as_arrays
from fedact.data.readers import hub
from fedact.data.readers.hub_pictures import HubPictures
from fedact.data.readers.hub_series import HubSeries
from fedact.simulate import main
from fedact.training.workspace import prepare, prepare_with
from tests.support.hub_sets import CLASS, CLASSES, PICTURE, TEXT, encoded, picture_set, save, series_set, shades

PIXELS, LABELS = shades(24)
SERIES = np.random.default_rng(0).normal(size=(24, 3, 10)).astype(np.float32)
KINDS = [CLASSES[label] for label in LABELS]


def read(place, settings="", side=64):
    return hub.load(f"hf:{place}{settings}", Request(Path(), None, None, np.random.default_rng(0), side))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "saved"
    return save(folder, train=picture_set(PIXELS, LABELS), test=picture_set(PIXELS[:6], LABELS[:6]))


def test_a_saved_folder_gives_back_its_pictures(saved, tmp_path):
    source = read(saved)
    assert isinstance(source.train.images, HubPictures)
    assert (source.classes, source.names, len(source.test)) == (3, tuple(CLASSES), 6)
    assert np.array_equal(source.train.labels, LABELS)
    decoded = decode_files(source, tmp_path / "cache")
    assert np.array_equal(np.asarray(decoded.train.images), PIXELS)
    assert np.array_equal(np.asarray(decoded.test.images), PIXELS[:6])


def test_larger_pictures_are_decoded_at_the_runs_size(saved):
    assert read(saved, side=8).train.images[:].shape == (24, 8, 8, 3)


def test_grey_pictures_keep_one_channel(tmp_path):
    grey, labels = shades(9, channels=1)
    source = read(save(tmp_path / "grey", train=picture_set(grey, labels), test=picture_set(grey, labels)))
    assert np.array_equal(source.train.images[:], grey)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_parquet_files_are_read(tmp_path, what, monkeypatch):
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    picture_set(PIXELS, LABELS).to_parquet(str(tmp_path / "set" / "train-00000-of-00001.parquet"))
    if what == "folder":
        picture_set(PIXELS[:6], LABELS[:6]).to_parquet(str(tmp_path / "set" / "test-00000-of-00001.parquet"))
        source = read(tmp_path / "set")
        assert np.array_equal(source.train.images[:], PIXELS)
        assert np.array_equal(source.test.images[:], PIXELS[:6])
        return
    source = read(tmp_path / "set" / "train-00000-of-00001.parquet")
    # A stratified quarter is for testing.
    assert np.bincount(source.test.labels).tolist() == [2, 2, 2]
    rows = np.concatenate([source.train.images[:], source.test.images[:]])
    assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in PIXELS)


def test_series_vectors_and_texts(tmp_path):
    place = save(tmp_path / "set", train=series_set(SERIES, KINDS), test=series_set(SERIES[:5], KINDS[:5]))
    source = read(place, ":series=signal")
    assert np.array_equal(source.train.images, SERIES)
    assert source.names == tuple(CLASSES)
    assert np.array_equal(source.train.labels, LABELS)
    assert np.array_equal(read(place, ":series=flat").test.images, SERIES[:5].reshape(5, -1))


def test_large_arrays_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    place = save(tmp_path / "set", train=series_set(SERIES, KINDS), test=series_set(SERIES[:5], KINDS[:5]))
    at_once = read(place, ":series=signal")
    monkeypatch.setattr("fedact.data.readers.hub_series.ON_DISK_FROM", 100)
    source = read(place, ":series=signal")
    assert isinstance(source.train.images, HubSeries)
    decoded = decode_files(source, tmp_path / "cache")
    assert np.array_equal(np.asarray(decoded.train.images), at_once.train.images)
    broken = series_set(np.where(np.arange(24)[:, None, None] == 6, np.nan, SERIES), KINDS)
    source = read(save(tmp_path / "broken", train=broken, test=broken.select(range(5))), ":series=signal")
    with pytest.raises(ConfigError, match=r"1 of 24 arrays cannot be used: .*row 6 of train: it holds a value that is not"):
        decode_files(source, tmp_path / "cache")


def test_what_is_tested_on_must_be_what_is_trained_on(tmp_path):
    grey, labels = shades(9, channels=1)
    other = picture_set(PIXELS, LABELS).cast_column("label", ClassLabel(names=["bee", "ant", "cow"]))
    place = save(tmp_path / "classes", train=picture_set(PIXELS, LABELS), test=other)
    with pytest.raises(
        ConfigError, match=r"label is ClassLabel\(names=\['ant', 'bee', 'cow'\]\) in what is trained on, and"
    ):
        read(place)
    # Where some are in colour all are.
    source = read(save(tmp_path / "both", train=picture_set(grey, labels), test=picture_set(PIXELS, LABELS)))
    assert np.array_equal(source.train.images[:], grey.repeat(3, axis=3))


def test_columns_and_splits_are_those_that_are_named(tmp_path):
    coarse, writer = [label // 2 for label in LABELS], [f"user {row % 4}" for row in range(24)]
    columns = {"coarse": (coarse, CLASS), "writer": (writer, TEXT), "thumb": ([encoded(PIXELS[0])] * 24, PICTURE)}
    place = save(tmp_path / "set", a=picture_set(PIXELS, LABELS, **columns), b=picture_set(PIXELS, LABELS, **columns))
    source = read(place, ":image=thumb,label=coarse,client=writer,split=b,test=a")
    assert np.array_equal(source.train.labels, coarse)
    assert np.array_equal(source.train.images[3:4], PIXELS[:1])
    assert source.client_names == ("user 0", "user 1", "user 2", "user 3")
    assert source.train.clients.tolist() == [row % 4 for row in range(24)]
    # Of several columns of classes the one called label is it.
    assert np.array_equal(read(place, ":image=image,split=a,test=b").train.labels, LABELS)
    for settings, said in {
        ":split=a": "several columns that may be image or series: image, thumb; name one, as in image=image",
        ":image=image": "has the splits a, b: name one, as in split=a",
        ":image=imag,split=a": "unknown column of .* 'imag': .* did you mean 'image'",
        ":image=writer,split=a": "writer holds texts, which are no image or series: allowed are image, thumb",
        ":image=image,split=a,client=thumb": "thumb holds pictures, which are no client",
        ":image=image,split=a,test=a": "would be tested on what it is trained on, the split a",
        ":image=image,split=c": "unknown split of .* 'c': allowed are a, b",
    }.items():
        with pytest.raises(ConfigError, match=said):
            read(place, settings)


def with_columns(**columns):
    return lambda folder: save(folder, train=picture_set(PIXELS, LABELS, **columns).remove_columns(["label"]))


WRONG = {
    "two columns of classes": (
        with_columns(fine=(LABELS.tolist(), CLASS), coarse=(LABELS.tolist(), CLASS)),
        "several columns that may be label: fine, coarse; name one, as in label=fine",
    ),
    "nothing to learn": (with_columns(score=([0.5] * 24, Value("float32"))), r"no column that may be label: it has image"),
    "no label": (
        lambda folder: save(folder, train=picture_set(PIXELS, LABELS), test=picture_set(PIXELS, LABELS * 0 - 1)),
        "the split test of .* has no labels: name another, as in test=validation",
    ),
    "a gap in the labels": (
        with_columns(kind=([None, *KINDS[1:]], TEXT)),
        "y_train of .* must be 24 whole numbers or texts",
    ),
    "series of several lengths": (
        lambda folder: save(
            folder, train=datasets.Dataset.from_dict({"x": [[1.0, 2.0], [1.0]] * 12, "label": LABELS.tolist()})
        ),
        "x must hold arrays of one shape",
    ),
    "nothing at all": (
        lambda folder: save(folder, train=picture_set(PIXELS[:0], LABELS[:0])),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize(("write", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_does_not_say_what_it_is_is_refused(tmp_path, write, said):
    with pytest.raises(ConfigError, match=said) as caught:
        read(write(tmp_path / "set"))
    assert "\n" not in str(caught.value)


RUN = [
    "--clients", "2", "--budget", "none", "--method", "vanilla", "--layers", "1", "--weights", "none", "--width", "0.1",
    "--resolution", "16", "--partition", "iid", "--calibration", "4", "--threads", "1", "--lr", "0.02", "--rounds", "1",
]  # fmt: skip


def test_a_run_on_a_saved_folder_goes_on_from_anywhere(tmp_path, monkeypatch):
    pixels, labels = shades(60)
    save(tmp_path / "set", train=picture_set(pixels, labels), test=picture_set(pixels[:9], labels[:9]))
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--dataset", "hf:set", "--out", "run"]) == 0
    assert f'dataset = "hf:{tmp_path / "set"}"' in (tmp_path / "run" / "config.toml").read_text()
    assert fedact.load_run(tmp_path / "run").rounds["test_examples"].tolist() == [9, 9]
    monkeypatch.chdir("/")
    assert main(["--resume", str(tmp_path / "run")]) == 0


def test_a_device_reads_its_own_folder(saved, tmp_path):
    config = make_config({
        "dataset": f"hf:{saved}", "clients": 2, "partition": "iid", "weights": "none", "width": 0.1, "resolution": 16,
        "calibration": 4,
    })  # fmt: skip
    server = prepare(config).experiment
    shutil.copytree(saved, tmp_path / "mine")
    text = hub_on_device(server.config.dataset, tmp_path / "mine")
    device = prepare_with(server.config.model_copy(update={"dataset": text}), server.start, server.preprocessing)
    assert np.array_equal(np.asarray(device.experiment.train.images), np.asarray(server.train.images))
    assert hub_on_device("hf:owner/name:label=x", None) == "hf:owner/name:label=x"
    with pytest.raises(ConfigError, match="must say data-dir"):
        hub_on_device(server.config.dataset, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf:", "must follow hf:"),
        ("hf:/no/such/folder", "no such file or folder, nor a name on the hub"),
        ("hf:nothing.parquet", "no such file or folder"),
        ("hf:name:labl=x", "unknown setting of hf:name 'labl': .* did you mean 'label'"),
        ("hf:name:image=a,series=b", "not both"),
        ("hf:name:image=", "settings are written key=value"),
    ],
)
def test_a_name_that_is_none_is_refused(text, said, tmp_path, capsys):
    assert main([*RUN, "--dataset", text, "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    with pytest.raises(ConfigError, match=said):
        hub.check_hub(text)
    with pytest.raises(ConfigError, match="is for --task classification, not for --task segmentation"):
        hub.check_hub(text, "segmentation")
    assert not (tmp_path / "out").exists()


def test_a_column_of_clients_deals_the_examples_to_them(tmp_path):
    writer = [f"user {row % 5}" for row in range(24)]
    train, test = picture_set(PIXELS, LABELS, writer=(writer, TEXT)), picture_set(PIXELS, LABELS)
    text = f"hf:{save(tmp_path / 'set', train=train, test=test)}:client=writer"
    settings = {"weights": "none", "width": 0.1, "resolution": 16, "calibration": 4, "layers": 0, "partition": "clients"}
    experiment = prepare(make_config({**settings, "dataset": text})).experiment
    assert set(experiment.client_names) < set(writer)
    assert sum(map(len, experiment.parts.whole)) == len(experiment.train) < 24


def test_what_is_no_data_set_and_what_is_not_reached_is_said_in_one_line(tmp_path, monkeypatch):
    def unreachable(*arguments, **settings):
        raise ConnectionError("Couldn't reach 'owner/name'\non the Hub")

    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    for name, said in {
        "a.parquet": "cannot be loaded",
        "a.csv": "must end in .parquet",
        "empty": "cannot be loaded",
    }.items():
        with pytest.raises(ConfigError, match=said) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        ConfigError, match=r"ConnectionError: Couldn't reach 'owner/name' on the Hub; without a network"
    ) as caught:
        read("owner/name")
    assert "\n" not in str(caught.value)
    asked = []
    splits = {"train": series_set(SERIES, KINDS), "validation": series_set(SERIES, KINDS)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: (asked.append(names), splits)[1])
    assert np.array_equal(read("owner/name", ":subset=small,series=signal").test.images, SERIES)
    assert asked == [("owner/name", "small")]
    monkeypatch.setattr("fedact.config.errors.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"--dataset hf:owner/name needs the extra hub"):
        read("owner/name")


def test_a_broken_picture_is_named(tmp_path):
    broken = picture_set(PIXELS, LABELS).to_dict()
    broken["image"][7] = {"bytes": broken["image"][7]["bytes"][:60], "path": None}
    broken["image"][9] = None
    data = datasets.Dataset.from_dict(broken, features=picture_set(PIXELS, LABELS).features)
    source = read(save(tmp_path / "set", train=data, test=picture_set(PIXELS, LABELS)))
    with pytest.raises(ConfigError, match=r"2 of 24 pictures cannot be used: .*row 7 of train.*row 9 of train: there is no"):
        decode_files(source, tmp_path / "cache")


def test_names_keep_what_follows_them(tmp_path):
    assert parse_hub("hf:C:/data/set:label=a").place == "C:/data/set"
    assert str(parse_hub("hf:name:test=b,label=a")) == "hf:name:label=a,test=b"
    assert absolute_hub(f"hf:{tmp_path}:label=a") == f"hf:{tmp_path}:label=a"
    assert hub_label("hf:a:lable=b") == "hf:a:lable=b"


def test_a_data_set_in_memory_becomes_arrays():
    found = as_arrays(picture_set(PIXELS, LABELS))
    assert np.array_equal(found.x, PIXELS)
    assert found.y.tolist() == KINDS
    of_series = as_arrays(series_set(SERIES, KINDS).remove_columns(["flat"]))
    assert np.array_equal(of_series.x, SERIES)
    assert of_series.y.tolist() == KINDS
    several = datasets.concatenate_datasets([picture_set(PIXELS[:3], LABELS[:3]), picture_set(PIXELS[3:5, :8], LABELS[3:5])])
    with pytest.raises(ConfigError, match=r"item 3 of mine is uint8 \(8, 12, 3\), the first is uint8 \(12, 12, 3\)"):
        as_arrays(several, "mine")
    with pytest.raises(ConfigError, match="row 2 has no label"):
        as_arrays(picture_set(PIXELS, np.where(np.arange(24) == 2, -1, LABELS)), "mine")
