"""What does a study take beside its training?

The time to plan 10 to 1,000 runs, and of the studies whose records are published here, the seconds
of all notebooks over those of their trainings. A record's seconds begin when its notebook knows its
parameters: the start of the kernel is not among them.
"""

import statistics
import tempfile
from pathlib import Path

import yaml

from benchmarks.side_by_side import options, row, slope, write
from prunegpt_utils.efficiency import time_in_turns
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
    seconds = planning(sizes, turns)
    middle = [statistics.median(seconds[n]) for n in sizes]
    rows = [
        row(f"plan {sizes[-1]:,} runs", "", "seconds", middle[-1], seconds=seconds),
        row("time to plan against runs", "", "slope", slope(sizes, middle), "<= 1.1"),
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
