"""report.html: the whole comparison in one file that needs no network and runs no script."""

import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedact.config.hub import hub_label
from fedact.reports.comparison.cases import Comparison
from fedact.reports.comparison.statistics import Figures
from fedact.reports.comparison.tables import all_tables, column_title, how_to_read
from fedact.reports.safe_text import escaped
from fedact.storage.run import Run


def html_report(
    comparison: Comparison, figures: Sequence[Figures], target: float, pictures: Mapping[str, bytes], command: str
) -> str:
    """Return the report's HTML; whatever runs on disk say is escaped.

    figures: of each case, as ``figures_of`` returns them. target: the score that "rounds to" asks for. pictures: PNG files
    by name. command: what makes the comparison again.
    """
    template = Environment(
        loader=PackageLoader("fedact.reports.comparison", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else escaped(value),
    ).get_template("report.html.jinja")  # fmt: skip
    runs, score = comparison.runs, comparison.score_name
    versions = {str(run.path): dict(run.headers[0].get("versions") or {}) for run in runs}
    return template.render(
        title="fedact: " + ", ".join(dict.fromkeys(_subject(run) for run in runs)),
        subtitle=f"{len(figures)} methods in {len(runs)} run{'s'[: len(runs) > 1]}",
        notes=comparison.notes,
        refused=comparison.refused,
        incomparable=comparison.incomparable(),
        tables=[
            {
                "title": title,
                "columns": [column_title(name, target, score) for name in columns],
                "rows": [[cell(row) for cell in columns.values()] for row in figures],
            }
            for title, columns in all_tables(True, figures).items()
        ],
        figures=[
            {"name": name.replace("accuracy", score), "data": b64encode(content).decode()}
            for name, content in pictures.items()
        ],
        differing=comparison.differing,
        differing_names=list(dict.fromkeys(name for settings in comparison.differing.values() for name in settings)),
        how_to_read=how_to_read(score),
        commands=[*(line for run in runs for line in commands(run)), command],
        versions=versions,
        packages=list(dict.fromkeys(name for by_name in versions.values() for name in by_name)),
    )


def commands(run: Run) -> list[str]:
    """Return the commands that make a run again: as it was started, and from its folder."""
    again = f"python -m fedact.simulate --config {shlex.quote(str(run.path / 'config.toml'))} --out NEW_FOLDER"
    began = dict.fromkeys(str(row["command"]) for row in run.headers if row.get("command"))
    return [*began, again]


def _subject(run: Run) -> str:
    """Return a run's model, data and resolution: ``mobilenet_v2 on digits at 64 px``."""
    config = run.config
    data = config.get("dataset", "some data")
    # Its name says what a file or a folder of the user's own is.
    name = PurePath(str(config.get("data_dir"))).name if data in ("npz", "folder") else hub_label(str(data))
    size = f" at {config['resolution']} px" if config.get("resolution") else ""
    return f"{config.get('model', 'a model')} on {name}{size}"
