"""What does a study take beside its training?

The time to plan 10 to 1,000 runs and to make a report of as many records, and of the studies whose
records are published here, the seconds of all notebooks over those of their trainings. A record's
seconds begin when its notebook knows its parameters: the start of the kernel is not among them.
"""

import os
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

import yaml

from benchmarks.side_by_side import options, row, slope, write
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.report import html
from prunegpt_utils.runs import expansion, paths, records


def planner(root, runs):
    """A study of so many runs, written below `root`, and the act that plans it."""
    seeds = list(range(runs // 5))
    notebooks = {
        "01_baselines": {"dense": {"seed": seeds}, "control": {"seed": seeds}},
        "02_pruning": {"gradual": {"seed": seeds, "sparsity": [0.5, 0.8, 0.9]}},
    }
    content = {"study": f"of-{runs}", "notebooks": notebooks}
    path = Path(root, "studies", f"of-{runs}.yaml")
    path.write_text(yaml.safe_dump(content), "utf-8")

    def act():
        planned = expansion.plan(path.stem)
        assert len(planned) == runs, f"{len(planned)} runs, not {runs}"

    return act


def planning(sizes, turns):
    """{runs: seconds of each turn}."""
    before = paths.ROOT
    with tempfile.TemporaryDirectory() as root:
        Path(root, "studies").mkdir()
        for folder in ("notebooks", "studies/recipes"):
            Path(root, folder).symlink_to(before / folder)
        paths.ROOT = Path(root)
        try:
            return time_in_turns({n: planner(root, n) for n in sizes}, turns)
        finally:
            paths.ROOT = before


def reporter(runs):
    """A study of so many records, written below the folder of runs, and the act that reports it."""
    like = next(r for r in records.published("pydocs") if r["base_recipe"] == "gradual-distilled")
    study = f"of-{runs}"
    for seed in range(runs):
        run = f"gradual-distilled-s90-seed{seed}"
        record = like | {"study": study, "run": run, "seed": seed}
        records.put(paths.study_folder(study) / "records" / f"{run}.json", record)
    return lambda: html.build(study)


def reporting(sizes, turns):
    """{records: seconds of each turn}."""
    with tempfile.TemporaryDirectory() as root, patch.dict(os.environ, PRUNEGPT_RUNS=root):
        return time_in_turns({n: reporter(n) for n in sizes}, turns)


def overhead(study):
    """(seconds of all notebooks, seconds of their trainings) of the published records."""
    found = [records.read(path) for path in sorted((paths.ROOT / "results" / study).glob("*.json"))]
    return (
        sum(record["seconds"] for record in found),
        sum(records.seconds_trained(record) for record in found if record["training"]["tokens"]),
    )


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    sizes = (10, 20) if smoke else (10, 30, 100, 300, 1000)
    rows = []
    for what, over, act in (("plan", "runs", planning), ("report", "records", reporting)):
        seconds = act(sizes, turns)
        middle = [statistics.median(seconds[n]) for n in sizes]
        exponent = slope(sizes, middle)
        rows += [
            row(f"{what} {sizes[-1]:,} {over}", "", "seconds", middle[-1], seconds=seconds),
            row(f"time to {what} against {over}", "", "slope", exponent, "<= 1.1"),
        ]
    for folder in sorted((paths.ROOT / "results").iterdir()):
        whole, training = overhead(folder.name)
        if training:
            what = f"study {folder.name}, notebooks without their kernels' start"
            seconds = {"notebooks": whole, "training": training}
            against, measure = "their training alone", "times the time"
            rows.append(row(what, against, measure, whole / training, "<= 1.15", seconds=seconds))
    return write("study_of_runs", "a study of many runs", rows, smoke)


if __name__ == "__main__":
    main()
