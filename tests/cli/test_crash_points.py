"""A process that dies at the n-th thing it does to the disk, for every n: what it leaves is started again or goes on."""

import fcntl
import io
import os
import random
from contextlib import suppress
from functools import lru_cache
from itertools import count
from pathlib import Path

import pytest

from fedact.federation import plan_tasks, planning
from fedact.reports.run import figures as plots
from fedact.simulate import main
from tests.support.runs import RUNS, SMALL, contents

QUICK = [*SMALL, "--rounds", "1", "--layers", "0", "--method", "exact"]


class Death(BaseException):
    """What nothing may catch."""


class Disk:
    """Counts what is done to the disk and dies at the ``dies_at``-th; once dead, nothing more reaches it."""

    def __init__(self, monkeypatch, dies_at: int | None = None) -> None:
        self.done, self.dies_at = 0, dies_at
        for where, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "mkdir"), (io, "open")):
            monkeypatch.setattr(where, name, self._watched(name, getattr(where, name)))

    def _watched(self, name, plain):
        def call(*arguments, **settings):
            if name == "open" and not set("wxa+") & set(str((*arguments, *settings.values())[1:2])):
                return plain(*arguments, **settings)
            if self.dies_at is not None and self.done >= self.dies_at:
                if self.done == self.dies_at and name == "fsync":
                    tear(arguments[0])
                self.done += 1
                raise Death
            self.done += 1
            return plain(*arguments, **settings)

        return call


def tear(descriptor: int) -> None:
    """Take the end off what was just written: it may never have reached the disk."""
    status = os.fstat(descriptor)
    # What a truncation leaves (it alone opens to read and write) was on the disk long before.
    truncated = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    if os.path.isfile(f"/proc/self/fd/{descriptor}") and not truncated:
        os.ftruncate(descriptor, max(0, status.st_size - random.Random(status.st_size).randrange(8)))


@pytest.fixture
def quick(monkeypatch):
    """Plans are made once and nothing is drawn: neither is what dies here."""
    monkeypatch.setattr(plots, "png", lambda figure: b"a figure")
    made = lru_cache(planning.make_plans)
    monkeypatch.setattr(plan_tasks, "make_plans", lambda *arguments: dict(made(*arguments)))
    monkeypatch.setattr(planning, "TOLERANCE", 0)


def goes_on(arguments: list[str], out: Path, dies_at: int | None) -> int:
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, dies_at)
        return main(["--resume", str(out)] if (out / "config.toml").exists() else [*arguments, "--out", str(out)])


def dies_everywhere(arguments: list[str], tmp_path: Path, every: int = 1) -> int:
    """Let a run die at each step in turn, or at one of ``every``, and what goes on from it at its third; return the last."""
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    expected = contents(tmp_path / "whole")
    for dies_at in count(step=every):
        out = tmp_path / str(dies_at)
        try:
            assert goes_on(arguments, out, dies_at) == 0
            return dies_at
        except Death:
            pass
        # Near the end there is no third step.
        with suppress(Death):
            goes_on(arguments, out, 2)
        assert goes_on(arguments, out, None) == 0
        assert contents(out) == expected
    raise AssertionError


def test_a_run_that_dies_at_any_step_goes_on(quick, tmp_path, capsys):
    assert dies_everywhere(QUICK, tmp_path) > 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["two seeds", "plans made again"])
def test_so_does_one_of_several_methods_seeds_or_plans(quick, tmp_path, capsys, name):
    assert dies_everywhere(RUNS[name], tmp_path, every=3) > 40
