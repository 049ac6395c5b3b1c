"""report.html: the whole comparison in one file that needs no network and runs no script."""

import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedact.reports.comparison.cases import Comparison
from fedact.reports.comparison.statistics import Figures
from fedact.reports.comparison.tables import Cell, all_tables, how_to_read, titled
from fedact.reports.safe_text import visible
from fedact.storage.run import Run


def html_report(
    comparison: Comparison, found: Sequence[Figures], target: float, pictures: Mapping[str, bytes], command: str
) -> str:
    """Return the report's HTML; whatever runs on disk say is escaped.

    pictures: PNG files by name. command: what makes the comparison again.
    """
    template = Environment(
        loader=PackageLoader("fedact.reports.comparison", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_told,
    ).get_template("report.html.jinja")
    runs, score = comparison.runs, comparison.score_name
    return template.render(
        title="fedact: " + ", ".join(dict.fromkeys(_what(run) for run in runs)),
        subtitle=f"{len(found)} methods in {len(runs)} run{'s'[: len(runs) > 1]}",
        notes=comparison.notes,
        refused=comparison.refused,
        not_the_same=comparison.not_the_same(),
        tables=[_table(title, columns, found, target, score) for title, columns in all_tables(replication=True).items()],
        figures=[
            {"name": name.replace("accuracy", score), "data": b64encode(content).decode()}
            for name, content in pictures.items()
        ],
        differing=comparison.differing,
        differing_names=list(dict.fromkeys(name for own in comparison.differing.values() for name in own)),
        how_to_read=how_to_read(score),
        commands=[*(line for run in runs for line in commands(run)), command],
        versions=_versions(runs),
    )


def _told(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible(value)


def commands(run: Run) -> list[str]:
    """Return the ways to make a run again: as it was started, and from its folder."""
    again = f"python -m fedact.simulate --config {shlex.quote(str(run.path / 'config.toml'))} --out NEW_FOLDER"
    began = dict.fromkeys(str(row["command"]) for row in run.headers if row.get("command"))
    return [*began, again]


def _what(run: Run) -> str:
    config = run.config
    data = config.get("dataset", "some data")
    # Its name says what a file or a folder of the user's own is.
    name = PurePath(str(config.get("data_dir"))).name if data in ("npz", "folder") else data
    return f"{config.get('model', 'a model')} on {name} at {config.get('resolution', '?')} px"


def _table(title: str, columns: Mapping[str, Cell], found: Sequence[Figures], target: float, score: str) -> dict[str, Any]:
    return {
        "title": title,
        "columns": [titled(name, target, score) for name in columns],
        "rows": [[cell(figures) for cell in columns.values()] for figures in found],
    }


def _versions(runs: Sequence[Run]) -> dict[str, Any]:
    by_run = {str(run.path): dict(run.headers[0].get("versions") or {}) for run in runs}
    return {"runs": by_run, "names": list(dict.fromkeys(name for found in by_run.values() for name in found))}
