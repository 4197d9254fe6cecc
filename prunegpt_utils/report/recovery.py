"""What training brings back of what a cut took: rows and a figure of trained models."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prunegpt_utils.protocols import exp
from prunegpt_utils.report import figure_files
from prunegpt_utils.report.figure_files import percent_axis
from prunegpt_utils.report.forgetting import ABILITIES, COLUMNS, correct_of_both, retained
from prunegpt_utils.report.frames import level
from prunegpt_utils.runs import paths, task_records
from prunegpt_utils.runs.records import read_study


def trained(records: Sequence[dict], scored: Mapping[str, Mapping]) -> pd.DataFrame:
    """One row a trained run and task, beside a dense run that was trained for as long.

    Args:
        records: of one study. Each is held against the dense run that its `reference` names, of
            its seed; one that names none against that of the cut models, if they agree.
        scored: {run: scores}, see `runs.task_records.scored`.

    Returns:
        DataFrame with run, recipe, base_recipe, level (see `frames.level`), requested (the sparsity
        asked for), ratio (of the perplexities on the validation text), task, and what `retained`
        returns.
    """
    by_name, rows = {record["run"]: record for record in records}, []
    cut = [record for record in records if record["sparsity"]["prunable"] > 0]
    named = {record["parameters"].get("reference") or "" for record in cut} - {""}
    shared = named.pop() if len(named) == 1 else ""
    for run, record in by_name.items():
        dense = record["parameters"].get("reference") or shared
        whole = dense if dense in by_name else f"{dense}-seed{record['seed']}"
        if run in scored and whole in scored and whole in by_name:
            ends = (by_name[name]["metrics"]["validation"]["nll"] for name in (run, whole))
            ratio = exp(next(ends) - next(ends))
            asked = record["sparsity"].get("requested", record["sparsity"]["prunable"])
            names = run, record["recipe"], record["base_recipe"]
            arm = *names, level(record["parameters"].get("scope", ""), asked), asked, ratio
            for task, *both in _of_both(scored[run], scored[whole]):
                rows.append((*arm, task, *retained(*both).values()))
    columns = ["run", "recipe", "base_recipe", "level", "requested", *COLUMNS[5:]]
    return pd.DataFrame(rows, columns=columns)


def _of_both(one, other):
    """(task, scores, scores) of the tasks on which two models were scored."""
    return [(task, one[task], other[task]) for task in ABILITIES if task in one and task in other]


def teacher_effect(table: pd.DataFrame, scored: Mapping[str, Mapping]) -> pd.DataFrame:
    """What the teacher changes in each ability: accuracy with it minus accuracy without it.

    Args:
        table: of `frames.frame`.  scored: {run: scores}, see `runs.task_records.scored`.

    Returns:
        DataFrame with run (that with a teacher), task, ratio (of the perplexities on the validation
        text, with the teacher over without), items, without, taught (accuracies), difference, and
        low and high, its 95 % interval over the items, each asked of both models.
    """
    rows, perplexity = [], table.set_index("run").perplexity
    pairs = table[table.run.isin(scored) & table.untaught.isin(scored)]
    for taught, alone in pairs[["run", "untaught"]].values:
        ratio = perplexity[taught] / perplexity[alone]
        for task, *both in _of_both(scored[taught], scored[alone]):
            found, before = correct_of_both(*both)
            change = found - before
            half = 1.96 * change.std(ddof=1) / math.sqrt(len(change))
            half = half or 3 / len(change)  # the rule of three, as in `forgetting.retained`
            mean, accuracies = change.mean(), (before.mean(), found.mean())
            ends = mean, mean - half, mean + half
            rows.append((taught, task, ratio, len(change), *accuracies, *ends))
    columns = ["run", "task", "ratio", "items", "without", "taught"]
    return pd.DataFrame(rows, columns=[*columns, "difference", "low", "high"])


# what was done to a model -> (base recipes, colour, marker)
_RECOVERED = {
    "cut, not trained": (["one-shot"], "#777777", "x"),
    "trained": (["gradual", "two-four"], "#E69F00", "s"),
    "trained with a teacher": (["gradual-distilled", "two-four-distilled"], "#0072B2", "o"),
}


def recovered(rows: pd.DataFrame) -> Figure:
    """What is left of each ability once the model was trained, a panel a kind of cut.

    Of models that were made in several ways, the one that the validation text chose.

    Args:
        rows: of `trained`. Seeds are averaged, and so are the ends of their intervals.
    """
    known = [recipe for recipes, *_ in _RECOVERED.values() for recipe in recipes]
    rows = rows[rows.base_recipe.isin(known) & (rows.requested > 0)]
    levels = rows.sort_values("requested").level.unique()
    figure, panels = plt.subplots(
        1, max(1, len(levels)), figsize=(4.2 * max(1, len(levels)) + 1.4, 4.6), sharex=True,
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    tasks = [task for task in ABILITIES if task in set(rows.task)][::-1]
    for axes, cut in zip(panels[0], levels, strict=False):
        for shift, (label, (recipes, colour, marker)) in enumerate(_RECOVERED.items(), -1):
            mine = rows[(rows.level == cut) & rows.base_recipe.isin(recipes)]
            if len(mine):
                ratios = np.exp(np.log(mine.ratio).groupby(mine.recipe).mean())
                mine = mine[mine.recipe == ratios.idxmin()]
                label = f"{label}: perplexity {ratios.min():.2f} x"
                mine = mine.groupby("task")[["share", "low", "high"]].mean().reindex(tasks)
                errors = np.array([mine.share - mine.low, mine.high - mine.share])
                place = np.arange(len(tasks)) - 0.22 * shift
                axes.plot(mine.share, place, color=colour, marker=marker, linestyle="", label=label)
                axes.errorbar(mine.share, place, xerr=errors, color=colour, fmt="none")
        axes.axvline(1, color="#999999", linewidth=0.8)
        axes.axvline(0, color="#999999", linewidth=0.8)
        gone = "two of four neighbours" if cut == "2:4" else f"{cut} of the block weights"
        axes.set(title=f"{gone} gone", xlabel="left of the dense model's, above a guess")
        axes.set_yticks(range(len(tasks)), [ABILITIES[task][0] for task in tasks])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False, fontsize=9.5)
        percent_axis(axes.xaxis)
    return figure


def save_recovered(study: str) -> Path | None:
    """Draw `recovered` into a study's figures; its path, or None if no cut model was scored."""
    found, folder = read_study(study)
    rows = trained(found, task_records.scored(folder))
    rows = rows[rows.requested > 0]
    if rows.empty:
        return None
    figure_files.style()
    return figure_files.save(recovered(rows), paths.study_folder(study) / "figures", "recovered")
