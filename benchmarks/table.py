"""Publish the records of the benchmarks and write their table into the README.

`python -m benchmarks.table` copies the records of `make bench` to benchmarks/results and puts the
table between the markers `<!-- bench -->` and `<!-- end bench -->`. No number is typed by hand.
"""

import argparse
import re
import shutil
from pathlib import Path

from benchmarks import scaling
from prunegpt_utils import plots, records
from prunegpt_utils.parameters import ParameterError

ORDER = ("training_step", "mask_cost", "teacher_cost", "global_threshold", "perplexity",
         "criteria_cost", "tokenising", "study_of_runs", "sparse_inference", "scaling",
         "profiles")  # fmt: skip
ON_A_GPU = ("training_step", "mask_cost", "teacher_cost")
DEVICES = {"cpu": "CPU", "cuda": "H200"}  # what is asked for; a record says what it was


def published():
    """Folder of the published records."""
    return records.ROOT / "benchmarks" / "results"


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
        if records.read(path)["environment"]["dirty"]:
            raise ParameterError(
                "benchmark", path.stem, "was made from a tree with changes; commit"
            )
    target.mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.copy(path, target / path.name)


def markdown(folder):
    """The table of the records in `folder`, with a line that says what they were made on."""
    lines = ["| question | against | result | goal | |", "| --- | --- | --: | --: | --- |"]
    places = []
    for kind, name in ((kind, name) for kind in DEVICES for name in ORDER):
        record = records.read(folder / f"{name}-{kind}.json")
        if record:
            places.append(_place(record["environment"]))
            rows = record["rows"] if name != "profiles" else []  # those have a table of their own
            lines += [_line(row, f"{name}-{kind}") for row in rows]
        elif kind == "cpu" or name in ON_A_GPU:
            lines.append(f"| {name.replace('_', ' ')}, {DEVICES[kind]} | | not run | | |")
    lines += ["", *(f"Run on {place}." for place in dict.fromkeys(places))]
    lines += _profiles(records.read(folder / "profiles-cpu.json"))
    if (folder / "scaling-cpu.json").exists():
        lines += ["", "![How time and memory grow, log-log](figures/benchmarks/scaling.png)"]
    return "\n".join(lines)


def _profiles(record):
    """A table of its own: an act a line, a kind of operation a column."""
    if not record:
        return []
    kinds = list(record["rows"][0]["seconds"])
    link = "[where the time goes](benchmarks/results/profiles-cpu.json)"
    lines = ["", f"| {link} | {' | '.join(kinds)} |", "| --- |" + " --: |" * len(kinds)]
    for row in record["rows"]:
        whole = sum(row["seconds"].values())
        cells = " | ".join(f"{100 * row['seconds'][kind] / whole:.0f} %" for kind in kinds)
        lines.append(f"| {row['case']} | {cells} |")
    return lines


def _line(row, record):
    goal = {True: "met", False: "missed"}.get(row.get("met"), "")
    link = f"[{row['case']}](benchmarks/results/{record}.json)"
    result = f"{number(row['value'])} {row['measure']}"
    wanted = row["goal"].replace(">=", "at least").replace("<=", "at most")
    return f"| {link} | {row['against']} | {result} | {wanted} | {goal} |"


def _place(where):
    packages = f"torch {where['torch']}, transformers {where['transformers']}"
    return f"{where['device']}, {where['threads']} threads, {packages}, at {where['commit'][:7]}"


def number(value):
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def with_table(text, table):
    """`text` with the table between its markers.

    Raises:
        ParameterError: it has no such markers.
    """
    begin, end = "<!-- bench -->", "<!-- end bench -->"
    if begin not in text or end not in text:
        raise ParameterError("README.md", begin, f"must be there, with {end} after it")
    inside = f"{begin}\n{table}\n{end}"
    return re.sub(f"{begin}.*?{end}", lambda _: inside, text, flags=re.S)


def main(arguments=None):
    """Publish, and rewrite the README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readme", type=Path, default=records.ROOT / "README.md")
    chosen = parser.parse_args(arguments)
    text = chosen.readme.read_text("utf-8")
    with_table(text, "")  # complains before anything is copied
    publish(records.study_folder("benchmarks"), published())
    grown = records.read(published() / "scaling-cpu.json")
    if grown:
        plots.save(scaling.draw(grown), records.ROOT / "figures" / "benchmarks", "scaling")
    table = markdown(published())
    part = chosen.readme.with_suffix(".part")
    part.write_text(with_table(text, table), "utf-8")
    part.replace(chosen.readme)
    print(table)


if __name__ == "__main__":
    try:
        main()
    except ParameterError as error:
        raise SystemExit(f"error: {error}") from error
