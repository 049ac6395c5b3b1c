"""A command as a process: who stops it, who reads it, and what its terminal can show."""

import ast
import os
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from io import BufferedWriter, FileIO, TextIOWrapper

import pytest

from fedact import compare, simulate
from fedact.cli.console import shell_word
from fedact.cli.process import Output, run_process
from fedact.federation import server
from tests.support.paths import ROOT
from tests.support.records import write_run
from tests.support.refusal import quiet_home  # noqa: F401
from tests.support.runs import ONE
from tests.support.stopping import stopping_after

HELP = [sys.executable, "-m", "fedact.simulate", "--help"]
STRANGE = [
    "a b",
    "it's",
    "[red]x[/]",
    "[/nothing]",
    "名前",
    "$HOME",
    ":cat:",
    "-rf",
    "a\nb",
    "\x1b[2J",
    "a\\b",
    os.fsdecode(b"\xff\xe9"),
]


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return monkeypatch


@pytest.mark.parametrize(
    ("shell", "code", "says"),
    [
        ("{help} | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{help} >&-", 0, ""),
        ("{help} >&- 2>&- <&-", 0, ""),
        ("{help} > /dev/full", 1, "fedact: the output cannot be written: No space left on device\n"),
        ("{help}x 2> /dev/full", 2, ""),
        (
            "mkdir x; cd x; rmdir ../x; {help}",
            2,
            "fedact: the folder that the command was started in is gone: change to another\n",
        ),
        ("{help}x 2>&1 | true; exit ${{PIPESTATUS[0]}}", 2, ""),
    ],
)
def test_an_output_that_ends_early_or_is_full_or_closed(shell, code, says, environment):
    done = subprocess.run(["bash", "-c", shell.format(help=shlex.join(HELP))], capture_output=True, text=True)
    assert done.returncode == code
    assert says is None or done.stderr == says


def heeding_ctrl_c():
    """Make a process heed Ctrl-C, though the tests may run in the background, where a shell has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("module", ["typing", "pydantic", "torch"])
def test_whatever_is_being_imported_a_stop_is_one_line(module, number, code, tmp_path, environment):
    (tmp_path / f"{module}.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    environment.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    done = subprocess.run(
        [*HELP[:-1], "--out", str(tmp_path / "out")], capture_output=True, text=True, preexec_fn=heeding_ctrl_c
    )
    assert (done.returncode, done.stderr, done.stdout) == (code, "\nfedact: interrupted; nothing was written\n", "")


def test_a_command_that_was_started_to_ignore_ctrl_c_goes_on_doing_so(environment):
    waits = "import signal, fedact.cli.signals as s; s.catch_early(); s.catch_late(); print(signal.getsignal(2).name)"
    done = subprocess.run(["bash", "-c", f"trap '' INT; {sys.executable} -c '{waits}'"], capture_output=True, text=True)
    assert done.stdout == "SIG_IGN\n"


def test_a_run_whose_reader_ends_goes_on_and_says_so_once(caplog):
    read, write = os.pipe()
    os.close(read)
    caplog.set_level("INFO", "fedact")
    with Output(write, "wb") as output:
        assert [output.write(b"one\n"), output.write(b"more\n")] == [4, 5]


def test_a_path_is_written_so_that_a_shell_reads_it_back():
    for name in [*STRANGE, *(chr(number) for number in range(1, 128))]:
        said = subprocess.run(["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True).stdout
        assert said == os.fsencode(name)
        assert shell_word(name).isprintable()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    assert simulate.main([*ONE, "--out", str(run)]) == 0
    return run


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_finished_run_is_named_by_its_letters_whatever_the_terminal_can_show(
    name, encoding, finished, tmp_path, capfd, monkeypatch
):
    run = tmp_path / name
    shutil.copytree(finished, run)
    monkeypatch.setattr("sys.stdout", TextIOWrapper(BufferedWriter(FileIO(1, "wb", closefd=False)), encoding))
    assert run_process(partial(simulate.main, ["--resume", str(run)])) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last.isprintable()
    shown = last.removeprefix("records, plans and figures are in ").partition(" (accuracy.png")[0]
    escapes = not name.isprintable() or (encoding == "ascii" and not name.isascii())
    assert (ast.literal_eval(f'"{shown}"') if escapes else shown) == str(run)


def test_a_stopped_run_says_how_to_go_on_in_words_for_a_shell(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
    run = tmp_path / "[bold] it's\n1"
    assert simulate.main([*ONE, "--out", str(run)]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {said.partition('go on with: ')[2]}"], capture_output=True).stdout
    assert words.decode().split("\0")[:-1] == ["python", "-m", "fedact.simulate", "--resume", str(run)]
    monkeypatch.undo()


def test_a_full_disk_is_one_line_wherever_a_command_writes(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "x\ny")

    monkeypatch.setattr(compare, "read_share", full)
    assert compare.main([str(write_run(tmp_path / "run")), "--accuracy", "1"]) == 1
    assert capsys.readouterr().err == "fedact: stopped: [Errno 28] No space left on device: 'x\\ny'\n"
