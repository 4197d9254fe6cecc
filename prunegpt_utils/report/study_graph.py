"""The figure of a plan: which recipes need the runs of which others."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from prunegpt_utils.report.figure_files import left_out


def study_graph(plan: dict, done: set[str]) -> Figure | None:
    """What needs what: a box a recipe, to the right of all that it needs.

    Args:
        plan: of `runs.expansion.plan`.  done: names of the runs that are done.
    """
    if not plan:
        return left_out("the study", "it plans no run")
    runs, needs = _recipes(plan)
    columns = {}
    for recipe in runs:
        columns.setdefault(_depth(recipe, needs), []).append(recipe)
    tallest = max(map(len, columns.values()))
    figure, axes = plt.subplots(figsize=(3.4 * len(columns), 0.62 * tallest + 0.6))
    spots = {}
    for column, group in columns.items():
        for row, recipe in enumerate(group):
            spots[recipe] = column, (tallest - len(group)) / 2 + row
    for recipe, theirs in needs.items():
        # what is needed anyway, by something else that is needed, goes without a line
        indirect = set().union(*(_all_needs(need, needs) for need in theirs))
        for need in sorted(theirs - indirect):
            ends = zip(spots[need], spots[recipe], strict=True)
            axes.plot(*ends, color="#bbbbbb", linewidth=1, zorder=1)
    for recipe, (x, y) in spots.items():
        count, total = sum(name in done for name in runs[recipe]), len(runs[recipe])
        axes.text(
            x, y, f"{recipe}\n{count} of {total} done", ha="center", va="center",
            fontsize=8.5, zorder=2, bbox={"boxstyle": "round,pad=0.4", "edgecolor": "#999999",
            "facecolor": "#d7e6f3" if count == total else "#ffffff"},
        )  # fmt: skip
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(tallest - 0.4, -0.6))
    axes.axis("off")
    return figure


def _recipes(plan):
    """({recipe: names of its runs}, {recipe: other recipes that it needs})."""
    runs, needs = {}, {}
    for name, run in plan.items():
        recipe = run.parameters["recipe"]
        runs.setdefault(recipe, []).append(name)
        theirs = {plan[need].parameters["recipe"] for need in run.depends_on}
        needs[recipe] = needs.get(recipe, set()) | theirs - {recipe}
    return runs, needs


def _depth(recipe, needs):
    return 1 + max((_depth(need, needs) for need in needs[recipe]), default=-1)


def _all_needs(recipe, needs):
    return needs[recipe].union(*(_all_needs(need, needs) for need in needs[recipe]))
