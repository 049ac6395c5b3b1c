"""Laws checked on a method: what holds, what does not, and the smallest case that shows it."""

import warnings
from dataclasses import dataclass
from math import ceil
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from fedact.compression import Method
from fedact.laws.demand import BrokenLaw
from fedact.laws.table import Law

MOST = 30
"""The largest number of examples in the table; with ``--examples`` N, a law's others are in proportion."""


@dataclass(frozen=True)
class Verdict:
    """What came of one law: ``holds``, ``fails`` or ``not checked``.

    reason: why it was not checked, or what was found. case: the smallest one that fails, as Python that makes it again.
    """

    law: str
    sentence: str
    verdict: str
    reason: str = ""
    case: str = ""


def judge(name: str, law: Law, method: Method, examples: int = MOST, start: int | None = None) -> Verdict:
    """Return what comes of a law on so many drawn cases of a method, and where it fails, on the smallest.

    start: the seed of the cases; None for the same ones each time.

    >>> from fedact.compression import make_method
    >>> from fedact.laws import LAWS
    >>> judge("smaller", LAWS["smaller"], make_method("quantize"), examples=1).verdict
    'holds'
    """
    if reason := law.not_checked(method):
        return Verdict(name, law.sentence, "not checked", reason)
    # The last failure is of the smallest case: shrinking ends with it.
    failures: list[tuple[Any, Exception]] = []

    def check(case: Any) -> None:
        try:
            law.check(method, case)
        except SystemExit as stop:
            failures.append((case, error := RuntimeError(f"it exits: SystemExit: {stop}")))
            raise error from None
        except Exception as error:
            failures.append((case, error))
            raise

    run = settings(
        max_examples=ceil(examples * law.examples / MOST),
        derandomize=start is None,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=[*HealthCheck],
        phases=(Phase.generate, Phase.shrink),
    )(given(law.cases)(check))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (run if start is None else seed(start)(run))()
    except Exception:
        if not failures:
            raise
    if not failures:
        return Verdict(name, law.sentence, "holds")
    case, error = failures[-1]
    said = " ".join(str(error).split())
    return Verdict(
        name, law.sentence, "fails", said if isinstance(error, BrokenLaw) else f"{type(error).__name__}: {said}", repr(case)
    )
