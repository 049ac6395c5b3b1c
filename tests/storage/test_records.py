import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.errors import ConfigError
from fedact.storage.rows import CLIENT_FIELDS, ROUND_FIELDS, complete, finished_rows, read_rows
from fedact.storage.run import load_run, run_folders
from fedact.storage.run_folder import RunFolder
from tests.support.planned import plan_row
from tests.support.records import HEADER, client, round_


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def test_append_completes_fields_in_their_order_with_null(folder):
    folder.append([client(1), round_(1)])
    first, second = (json.loads(line) for line in folder.records.read_text().splitlines())
    assert (tuple(first), tuple(second)) == (CLIENT_FIELDS, ROUND_FIELDS)
    assert first["saved_bytes"] is None
    assert second["worst_client_accuracy"] is None


def test_a_field_that_no_row_has_is_refused_and_nothing_is_written(folder):
    with pytest.raises(KeyError, match="colour"):
        folder.append([client(1), client(2, colour="red")])
    assert not folder.records.exists()


def test_a_header_keeps_its_own_fields():
    assert complete(HEADER) == HEADER


def test_a_torn_last_line_is_left_out(folder):
    folder.append([HEADER, round_(0)])
    whole = folder.records.read_text()
    for end in range(1, len(json.dumps(complete(round_(1))))):
        folder.records.write_text(whole + json.dumps(complete(round_(1)))[:end])
        assert [row["kind"] for row in read_rows(folder.records)] == ["run", "round"]


def test_a_line_torn_within_a_letter_is_left_out(folder):
    folder.records.write_bytes(json.dumps(HEADER).encode() + b'\n{"kind": "\xc3')
    assert read_rows(folder.records) == [HEADER]


@pytest.mark.parametrize("line", ["{broken", "", "3", "null", "[]", '"run"', "{}", '{"kinds": 1}', "NaN"])
def test_a_broken_line_in_the_middle_is_named(folder, line):
    folder.records.write_text(f"{json.dumps(HEADER)}\n{line}\n{json.dumps(round_(0))}\n")
    with pytest.raises(ConfigError, match=r"records\.jsonl, line 2"):
        read_rows(folder.records)


def test_a_missing_file_is_named(folder):
    with pytest.raises(ConfigError, match=r"records\.jsonl"):
        read_rows(folder.records)


def test_a_number_that_json_does_not_have_is_never_written(folder):
    folder.append([round_(0, accuracy=float("nan"), loss=float("inf"))])
    text = folder.records.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_an_iou_of_each_class_comes_back_with_none_for_a_class_that_is_not_there(folder):
    folder.append([{**HEADER, "classes": ["road", "sky", "car"]}, round_(0, class_iou=[0.5, float("nan"), 0.25])])
    folder.append([client(1, class_iou=[None, 1.0, 0.0]), round_(1)])
    assert "NaN" not in folder.records.read_text()
    run = load_run(folder.path)
    assert run.rounds["class_iou"].tolist() == [[0.5, None, 0.25], None]
    assert run.clients["class_iou"].tolist() == [[None, 1.0, 0.0]]
    assert run.headers[0]["classes"] == ["road", "sky", "car"]


def test_a_run_from_before_there_were_classes_loads_with_none(folder):
    old = [{name: value for name, value in complete(row).items() if name != "class_iou"} for row in (client(1), round_(1))]
    lines = [HEADER, complete(round_(0)) | {"class_iou": None}, *old]
    folder.records.write_text("".join(json.dumps(row) + "\n" for row in lines))
    run = load_run(folder.path)
    assert run.rounds["class_iou"].tolist() == [None, None]
    assert run.clients["class_iou"].tolist() == [None]


@pytest.mark.parametrize("first", [{**HEADER, "classes": ["road", "sky"]}, HEADER])
def test_rows_of_other_numbers_of_classes_are_no_run(folder, first):
    told = [None, 0.5] if "classes" not in first else None
    folder.append([first, round_(0, class_iou=told), client(1, class_iou=[0.1, 0.2, 0.3]), round_(1)])
    with pytest.raises(ConfigError, match=r"line 3: class_iou has 3 classes, not 2"):
        folder.rows()


@pytest.mark.parametrize("class_iou", [0.5, "0.5", ["a"], [[0.5]], {"road": 0.5}, [-0.1, 0.5], [0.5, 1.5]])
def test_a_class_iou_that_is_no_list_of_shares_is_no_record(folder, class_iou):
    folder.append([HEADER, round_(0, class_iou=class_iou)])
    with pytest.raises(ConfigError, match="line 2, is no record"):
        folder.rows()


@pytest.mark.parametrize(
    ("task", "name"), [("segmentation", "mean IoU"), ("classification", "accuracy"), (None, "accuracy")]
)
def test_a_score_is_called_by_its_task_and_old_runs_classify(folder, task, name):
    folder.append([{**HEADER, "config": {"task": task} if task else {}}, round_(0)])
    assert load_run(folder.path).score_name == name


rows = st.lists(st.sampled_from(["run", "client", "round"]).map(lambda kind: {"kind": kind}), max_size=12)


@given(rows)
def test_finished_ends_with_a_header_or_a_round_and_drops_only_clients(rows):
    kept = finished_rows(rows)
    assert rows[: len(kept)] == kept
    assert all(row["kind"] == "client" for row in rows[len(kept) :])
    assert not kept or kept[-1]["kind"] != "client"
    assert finished_rows(kept) == kept


def test_cutting_drops_the_unfinished_tail_and_leaves_the_rest_byte_for_byte(folder):
    folder.append([HEADER, round_(0)])
    folder.append([client(1, loss) for loss in (0, 1)] + [round_(1, loss=0.1)])
    whole = folder.records.read_bytes()
    folder.append([client(2)])
    with folder.records.open("a") as file:
        file.write('{"kind": "rou')
    assert len(folder.cut_unfinished()) == 5
    assert folder.records.read_bytes() == whole
    assert folder.cut_unfinished() == folder.rows()
    assert [file.name for file in folder.path.iterdir()] == ["records.jsonl"]


def test_a_checkpoints_name_is_plain_and_sorts_by_round(folder):
    names = [folder.checkpoint("hosvd:variance=0.8,max_ranks=1x2", number).name for number in (2, 10)]
    assert names == [
        "hosvd-variance-0.8-max_ranks-1x2-round-0002.safetensors",
        "hosvd-variance-0.8-max_ranks-1x2-round-0010.safetensors",
    ]
    assert names == sorted(names)


def test_a_checkpoint_never_leaves_its_folder(folder):
    assert folder.checkpoint("../../etc/x", 1).resolve().parent == (folder.path / "checkpoints").resolve()


def test_methods_that_differ_have_checkpoints_that_differ(folder):
    names = ["q:a=1,b=2", "q:a=-1", "q:a=1", "q:a=1e-07", "q:a=1e07"]
    assert len({folder.checkpoint(name, 1) for name in names}) == len(names)


def test_load_run_gives_data_frames_with_every_field(folder):
    folder.append([HEADER, round_(0)])
    folder.append([client(1, 0, saved_bytes=7), client(1, 1), round_(1)])
    plans = {"exact": {"7": plan_row()}}
    folder.plans.write_text(json.dumps(plans))
    run = load_run(folder.path)
    assert (tuple(run.clients.columns), tuple(run.rounds.columns)) == (CLIENT_FIELDS, ROUND_FIELDS)
    assert (len(run.clients), run.rounds["round"].tolist()) == (2, [0, 1])
    assert run.clients["saved_bytes"].isna().tolist() == [False, True]
    assert (run.config, run.plans) == ({"clients": 2}, plans)


def test_load_run_leaves_out_an_unfinished_round(folder):
    folder.append([HEADER, round_(0), client(1)])
    assert load_run(str(folder.path)).clients.empty


def test_load_run_joins_the_seeds_in_their_order(folder):
    for seed in (10, 2, 0):
        part = RunFolder(folder.path / f"seed-{seed}")
        part.path.mkdir()
        part.append([HEADER, {**round_(0), "seed": seed}])
    assert load_run(folder.path).rounds["seed"].tolist() == [0, 2, 10]
    assert len(run_folders(folder.path)) == 3


@pytest.mark.parametrize(
    "text", [None, "", '{"kind": "run"', '{"kind": "client"}\n', '{"kind": "round"}\n', '{"kind": "run"}\n']
)
def test_a_folder_without_a_run_is_refused(folder, text):
    if text is not None:
        folder.records.write_text(text)
    with pytest.raises(ConfigError, match=folder.path.name):
        _ = load_run(folder.path).config


@pytest.mark.parametrize("text", ["", "{broken", "[]", "[" * 10**5, '{"exact": {"7": {}}}', '{"exact": {"07": null}}'])
def test_broken_plans_are_refused(folder, text):
    folder.append([HEADER, round_(0)])
    folder.plans.write_text(text)
    with pytest.raises(ConfigError, match=r"plans\.json"):
        load_run(folder.path)
