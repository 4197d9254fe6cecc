"""Publish the records of the benchmarks and write their table into the README beside this file.

`python -m benchmarks.table` copies the records of `make bench` to benchmarks/results and puts the
table between the markers `<!-- bench -->` and `<!-- end bench -->`. No number is typed by hand.
"""

import argparse
import shutil
from pathlib import Path

from benchmarks import scaling
from benchmarks.side_by_side import number
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path
from prunegpt_utils.report import figure_files
from prunegpt_utils.report.publish import between_markers
from prunegpt_utils.report.tables import markdown_table
from prunegpt_utils.runs import paths, records

ORDER = ("training_step", "mask_cost", "teacher_cost", "attention_cost", "global_threshold",
         "perplexity", "criteria_cost", "tokenising", "study_of_runs", "sparse_inference",
         "scaling", "threads", "compiled", "kept_copies", "profiles")  # fmt: skip
ON_A_GPU = ("training_step", "mask_cost", "teacher_cost")
DEVICES = {"cpu": "CPU", "cuda": "H200"}  # what is asked for; a record says what it was


def published():
    """Folder of the published records."""
    return paths.ROOT / "benchmarks" / "results"


def publish(source, target):
    """Copy the records of all benchmarks.

    Raises:
        ParameterError: there are none, or one was made from files that were not committed.
    """
    found = sorted(source.glob("*.json"))
    if not found:
        raise ParameterError(
            "benchmarks", source.name, "has no records yet; `make bench` makes them"
        )
    for path in found:
        if records.load(path)["environment"]["dirty"]:
            raise ParameterError(
                "benchmark", path.stem, "was made from a tree with changes; commit"
            )
    target.mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.copy(path, target / path.name)


def markdown(folder):
    """The table of the records in `folder`, with a line that says what they were made on."""
    cells, places = [], []
    for kind, name in ((kind, name) for kind in DEVICES for name in ORDER):
        record = records.load(folder / f"{name}-{kind}.json")
        if record:
            places.append(_place(record["environment"]))
            rows = record["rows"] if name != "profiles" else []  # those have a table of their own
            cells += [_cells(row, f"{name}-{kind}") for row in rows]
        elif kind == "cpu" or name in ON_A_GPU:
            cells.append((f"{name.replace('_', ' ')}, {DEVICES[kind]}", "", "not run", "", ""))
    parts = [markdown_table(("question", "against", "result", "goal", ""), cells, (2, 3))]
    parts.append("\n".join(f"Run on {place}." for place in dict.fromkeys(places)))
    profiles = records.load(folder / "profiles-cpu.json")
    if profiles:
        parts.append(_profiles(profiles["rows"]))
    if (folder / "scaling-cpu.json").exists():
        parts.append("![How time and memory grow, log-log](../figures/benchmarks/scaling.png)")
    return "\n\n".join(parts)


def _cells(row, record):
    goal = {True: "met", False: "missed"}.get(row.get("met"), "")
    link = f"[{row['case']}](results/{record}.json)"
    result = f"{number(row['value'])} {row['measure']}"
    wanted = row["goal"].replace(">=", "at least").replace("<=", "at most")
    return link, row["against"], result, wanted, goal


def _profiles(rows):
    """A table of its own: an act a line, a kind of operation a column."""
    kinds, cells = list(rows[0]["seconds"]), []
    for row in rows:
        whole = sum(row["seconds"].values())
        shares = [f"{100 * row['seconds'][kind] / whole:.0f} %" for kind in kinds]
        cells.append((row["case"], *shares))
    link = "[where the time goes](results/profiles-cpu.json)"
    return markdown_table((link, *kinds), cells, range(1, len(kinds) + 1))


def _place(where):
    packages = f"torch {where['torch']}, transformers {where['transformers']}"
    return f"{where['device']}, {where['threads']} threads, {packages}, at {where['commit'][:7]}"


def main(arguments=None):
    """Publish, and rewrite the README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readme", type=Path, default=paths.ROOT / "benchmarks" / "README.md")
    chosen = parser.parse_args(arguments)
    text = chosen.readme.read_text("utf-8")
    between_markers(text, "bench", "")  # complains before anything is copied
    publish(paths.study_folder("benchmarks"), published())
    grown = records.load(published() / "scaling-cpu.json")
    if grown:
        figure_files.save(scaling.draw(grown), paths.ROOT / "figures" / "benchmarks", "scaling")
    table = markdown(published())
    with atomic_path(chosen.readme) as part:
        part.write_text(between_markers(text, "bench", table), "utf-8")
    print(table)


if __name__ == "__main__":
    try:
        main()
    except ParameterError as error:
        raise SystemExit(f"error: {error}") from error
