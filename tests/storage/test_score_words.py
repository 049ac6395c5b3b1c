"""A segmentation run says mean IoU wherever it shows its score in the terminal and to TensorBoard."""

import io

import pytest
from rich.console import Console

from fedact.config.schema import Config
from fedact.reports.run.tables import LiveReport, summary
from fedact.storage.rows import score_name
from fedact.storage.run import load_run
from fedact.storage.run_folder import RunFolder
from tests.support.records import client, round_, write_run


def shown(task: str, write) -> str:
    console = Console(file=io.StringIO(), width=200)
    write(console, score_name({"task": task}))
    return console.file.getvalue()


@pytest.mark.parametrize(("task", "said"), [("segmentation", "mean IoU 50.0 %"), ("classification", "accuracy 50.0 %")])
def test_a_rounds_line_names_the_score(task, said):
    def write(console, score):
        with LiveReport(console, ["exact"], 3, {}, score) as live:
            live.on_round(round_(1), [])

    assert said in shown(task, write)


@pytest.mark.parametrize(("task", "score"), [("segmentation", "mean IoU"), ("classification", "accuracy")])
def test_the_table_at_the_end_names_the_score(tmp_path, task, score):
    run = load_run(write_run(tmp_path / "run", config={"task": task}))
    said = shown(task, lambda console, _: console.print(summary(run)))
    assert f"{score} before" in said
    assert f"{score} after" in said


def test_a_config_says_its_score_whether_or_not_it_knows_of_tasks():
    assert score_name(dict(Config())) == score_name({}) == "accuracy"


def test_tensorboard_has_the_score_by_its_name(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from fedact.reports.run.tensorboard import TensorBoardLog

    clients = [client(1, accuracy=0.25, class_iou=[0.25, None])]
    with TensorBoardLog(RunFolder(tmp_path), ["exact"], {}, "mean IoU") as log:
        log.on_round(round_(1, worst_client_accuracy=0.25, class_iou=[0.5, None]), clients)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "exact")).Reload()
    tags = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert tags == {
        "round/mean_IoU": 0.5,
        "round/worst_client_mean_IoU": 0.25,
        "clients/mean_IoU_mean": 0.25,
        "clients/failed": 0,
    }
