"""Results as files: record a run's figures in results/NAME.json, and write the documentation's tables from these files.

python benchmarks/results.py record NAME RUN...        from the folders of finished runs
python benchmarks/results.py record NAME -- COMMAND    run a command of fedact.simulate, then record it
python benchmarks/results.py tables [--check]          write the tables of README.md and docs/, or name those out of date
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedact.config.errors import ConfigError
from fedact.reports.comparison.cases import Case, compare_runs
from fedact.reports.comparison.statistics import figures_of, target_accuracy
from fedact.reports.comparison.tables import all_tables, column_title
from fedact.reports.run.tables import run_figures

ROOT = Path(__file__).resolve().parent.parent
MARK = r"<!-- table: (?P<what>[^>\n]*?) -->\n"
BLOCK = re.compile(rf"(?P<mark>{MARK})(?P<table>.*?)(?P<end><!-- end table -->)", re.DOTALL)
OPTIONS = ("transposed", "source")
NOT_RECORDED = "not recorded"
"""The machine of an older result."""
Table = dict[str, Any]
"""columns: list of names. rows: list of lists of texts, numbers or None."""


def commit(root: Path = ROOT) -> str:
    """Return the commit of the working tree; raises ConfigError where the package has changes that are not committed."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    if changed := git("status", "--porcelain", "--", "fedact"):
        raise ConfigError(f"commit first, so that the result can name its commit: {changed.splitlines()[0].strip()}")
    return git("rev-parse", "--short=12", "HEAD")


def write_result(
    name: str, command: str, tables: dict[str, Table], *, machine: dict[str, Any] | str, versions: dict[str, str],
    threads: int | None, seeds: Sequence[int], commit: str, root: Path = ROOT,
) -> Path:  # fmt: skip
    """Write results/NAME.json and return its path; a table that is named "default" needs no name in the documentation.

    machine: of ``fedact.storage.machine``, or "not recorded".
    """
    for title, table in tables.items():
        if strange := [row for row in table["rows"] if len(row) != len(table["columns"])]:
            raise ConfigError(f"{name}, table {title}: {len(table['columns'])} columns, but a row of {len(strange[0])}")
    facts = {"machine": machine, "versions": versions, "threads": threads}
    result = {"name": name, "command": command, "commit": commit, **facts}
    file = root / "results" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**result, "seeds": list(seeds), "tables": tables}, indent=1, ensure_ascii=False) + "\n")
    return file


def run_table(cases: Sequence[Case], score: str) -> Table:
    """Return one row for each method of each run, with every column of the comparison and of the run's own table."""
    target = target_accuracy(cases)
    figures = [figures_of(case, target) for case in cases]
    tables = all_tables(True, figures).values()
    cells = {column_title(column, target, score): cell for table in tables for column, cell in table.items()}
    rows = [
        {name: cell(found) for name, cell in cells.items()} | run_figures(case.run, case.method)
        for case, found in zip(cases, figures, strict=True)
    ]
    # A budget, or a plan in streams, has rows that others' tables lack.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def record_runs(name: str, folders: Sequence[Path], command: str | None = None, root: Path = ROOT) -> Path:
    """Write results/NAME.json from finished runs; raises ConfigError for a run that cannot be read or is not finished.

    command: what is written as the command, by default each run's own without its folder.
    """
    now, comparison = commit(root), compare_runs(folders)
    if problems := [*comparison.refused, *comparison.notes]:
        raise ConfigError("; ".join(problems))
    cases, headers = comparison.cases, [run.headers[0] for run in comparison.runs]
    commands = dict.fromkeys(re.sub(r" --out(=| )\S+", "", header["command"]) for header in headers)
    return write_result(
        name, command or "\n".join(commands), {"default": run_table(cases, comparison.score_name)}, root=root, commit=now,
        machine=headers[0].get("machine") or NOT_RECORDED, versions=headers[0]["versions"],
        threads=headers[0]["config"]["threads"],
        seeds=sorted({seed for case in cases for seed in case.seeds}),
    )  # fmt: skip


def record_command(name: str, command: Sequence[str]) -> Path:
    """Run a command of fedact.simulate into a folder that is removed at the end, and write results/NAME.json."""
    commit()
    with TemporaryDirectory() as folder:
        run = [sys.executable if command[0] == "python" else command[0], *command[1:], "--out", f"{folder}/run"]
        subprocess.run(run, check=True)
        return record_runs(name, [Path(folder) / "run"], shlex.join(command))


def markdown(what: str, root: Path = ROOT) -> str:
    """Return the table that a mark asks for: NAME or NAME.TABLE, then options, then columns after a bar.

    Options: ``transposed`` (a column for each row of the file), ``source`` (a last line with command, commit and versions).
    A file's ``note`` follows the table: what a reader must know of its figures, until they are recorded anew.
    Raises ConfigError for a file, a table, an option or a column that there is not.
    """
    words, _, wanted = what.partition("|")
    (name, *options), columns = words.split(), [column.strip() for column in wanted.split(",") if column.strip()]
    name, _, title = name.partition(".")
    file = root / "results" / f"{name}.json"
    if not file.is_file():
        raise ConfigError(f"table {what!r}: there is no {file.relative_to(root)}")
    result = json.loads(file.read_text())
    table = result["tables"].get(title or "default")
    missing = [column for column in columns if table and column not in table["columns"]]
    if table is None or missing or set(options) - set(OPTIONS):
        known = f"tables {', '.join(result['tables'])}; columns {', '.join(table['columns'] if table else ())}"
        raise ConfigError(f"table {what!r}: {file.name} has {known}; options are {', '.join(OPTIONS)}")
    columns = columns or table["columns"]
    places = [table["columns"].index(column) for column in columns]
    cells = [[_cell(columns[i], row[place]) for i, place in enumerate(places)] for row in table["rows"]]
    lines = [list(columns), *cells]
    if "transposed" in options:
        lines = [list(line) for line in zip(*lines, strict=True)]
        lines[0][0] = ""
    lines.insert(1, ["---"] * len(lines[0]))
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    note = f"\n{result['note']}\n" if "note" in result else ""
    return text + note + (f"\n{source(result)}\n" if "source" in options else "")


def _cell(column: str, value: Any) -> str:
    """Return a cell's text: numbers with thousands apart, methods as code."""
    if value is None:
        return "-"
    text = f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text}`" if column == "method" else text.replace("|", "\\|")


def source(result: dict[str, Any]) -> str:
    """Return one line that says what a result comes from."""
    commands = ", ".join(f"`{command}`" for command in result["command"].splitlines())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name in ("python", "torch"))
    seeds, threads = ", ".join(map(str, result["seeds"])), result["threads"]
    machine = result["machine"]
    facts = [
        f"commit {result['commit']}",
        "" if machine == NOT_RECORDED else f"{machine['processor']}, {machine['cores']} cores",
        versions,
        f"threads {threads}" if threads else "",
        f"seeds {seeds}" if seeds else "",
    ]
    return f"{commands} ({', '.join(filter(None, facts))})"


def outdated(root: Path = ROOT, write: bool = False) -> list[str]:
    """Return the documentation's tables that differ from their files, as ``PAGE: mark``; write: bring them up to date."""
    found = []
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        blocks = list(BLOCK.finditer(text))
        if len(blocks) != len(re.findall(MARK, text)):
            raise ConfigError(f"{page.relative_to(root)}: a table has no <!-- end table -->")
        stale = [block for block in blocks if block["table"] != markdown(block["what"], root)]
        found += [f"{page.relative_to(root)}: {block['what']}" for block in stale]
        if write and stale:
            page.write_text(
                BLOCK.sub(lambda block: block["mark"] + markdown(block["what"], root) + block["end"], text), "utf-8"
            )
    return found


def main() -> int:
    """Run the command line; returns 1 where --check finds a table that is out of date, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    record = commands.add_parser("record", help="write results/NAME.json")
    record.add_argument("name")
    record.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of finished runs; or -- COMMAND")
    tables = commands.add_parser("tables", help="write the documentation's tables from results/")
    tables.add_argument("--check", action="store_true", help="write nothing; name the tables that are out of date")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, command = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    try:
        if given.what == "record":
            print(record_command(given.name, command) if command else record_runs(given.name, given.runs))
            return 0
        stale = outdated(write=not given.check)
        print(
            "\n".join(f"{'out of date' if given.check else 'written'}: {line}" for line in stale)
            or "every table is up to date"
        )
        return 1 if given.check and stale else 0
    except ConfigError as error:
        print(f"results: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
