"""The laws in the terminal: a table of what holds, and for each that does not, a failing case that can be pasted."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fedact.cli.console import show
from fedact.cli.signals import catch_late
from fedact.compression import make_method, method_name
from fedact.config.errors import unknown
from fedact.laws.table import LAWS
from fedact.laws.verdicts import Verdict, judge
from fedact.reports.method_label import method_label
from fedact.reports.run.tables import listing
from fedact.reports.safe_text import escaped
from fedact.storage.disk import write_whole


def show_laws() -> int:
    """Print every law and what it says."""
    show(listing("Laws", ("name", "what it says"), [(name, law.sentence) for name, law in LAWS.items()]), prose=True)
    return 0


def check_laws(text: str, chosen: Sequence[str] | None, examples: int, seed: int | None, file: Path | None) -> int:
    """Check laws on the method that a text names, print and write what was found; returns 1 where one fails."""
    catch_late()
    method = make_method(text, check=False)
    for name in chosen or ():
        if name not in LAWS:
            raise unknown("law", name, LAWS)
    verdicts = [judge(name, LAWS[name], method, examples, seed) for name in chosen or LAWS]
    named = method_name(method)
    rows = [(each.law, each.verdict, each.reason or each.sentence) for each in verdicts]
    show(listing(f"Laws of {method_label(named)}", ("name", "", "what was found"), rows), prose=True)
    failing = [each for each in verdicts if each.verdict == "fails"]
    for each in failing:
        print(escaped_lines(failing_case(named, each)))
    held = sum(each.verdict == "holds" for each in verdicts)
    print(f"{held} of {len(verdicts)} laws hold, {len(failing)} fail, {len(verdicts) - held - len(failing)} not checked")
    if file:
        write_whole(file, json.dumps({"method": named, "laws": [asdict(each) for each in verdicts]}, indent=1) + "\n")
    return 1 if failing else 0


def failing_case(method: str, verdict: Verdict) -> str:
    """Return Python that shows a failure again."""
    case = verdict.case.partition("(")[0]
    lines = [
        f"\n# {verdict.law}: {verdict.reason}",
        "from fedact.compression import make_method",
        "from fedact.laws import LAWS",
        *([f"from fedact.laws.cases import {case}"] if case != "None" else []),
        f"LAWS[{verdict.law!r}].check(make_method({method!r}, check=False), {verdict.case})",
    ]
    return "\n".join(lines)


def escaped_lines(text: str) -> str:
    """Return a text whose lines a terminal shows as they are."""
    return "\n".join(map(escaped, text.splitlines()))
