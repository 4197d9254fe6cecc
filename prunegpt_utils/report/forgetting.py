"""What a model still can after a cut, as a share of what the dense model can: rows and figures."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D

from prunegpt_utils.protocols import exp
from prunegpt_utils.report import cuts
from prunegpt_utils.report.figure_files import percent_axis
from prunegpt_utils.report.methods import CRITERIA, TEXT_LABELS

# task -> (label, colour, marker)
ABILITIES = {
    "blimp": ("grammar (BLiMP)", "#0072B2", "o"),
    "elements_chosen": ("chemical symbol, chosen", "#E69F00", "s"),
    "capitals_chosen": ("capital, chosen", "#D55E00", "s"),
    "lambada": ("last word of a passage (LAMBADA)", "#009E73", "^"),
    "elements_produced": ("chemical symbol, produced", "#E69F00", "v"),
    "capitals_produced": ("capital, produced", "#D55E00", "v"),
}
FEW = 10  # right answers, below which a normal distribution is too narrow, or goes below none
COLUMNS = (
    "model", "criterion", "scope", "seed", "sparsity", "ratio", "task", "items", "chance",
    "accuracy", "dense", "share", "low", "high",
)  # fmt: skip


def retained(found: Mapping, dense: Mapping) -> dict[str, float]:
    """What is left of what the dense model can above a guess: (a - c) / (d - c).

    The interval is that of a ratio of means over the same items (delta method, Cochran 1977,
    section 6.4), on both sides 1.96 standard errors: what other items of the kind could change. It
    says nothing of another cut. Where fewer than `FEW` answers are right its ends are those of the
    accuracy, exact (Clopper and Pearson 1934), with the dense model's as it was measured; where no
    item was answered otherwise than before, 3 / n of them may be (Hanley and Lippman-Hand 1983).

    Args:
        found, dense: of one task, as `tasks.scoring.score_tasks` returns them.

    Returns:
        dict: items, chance (c), accuracy (a), dense (d), share, low and high.

    Raises:
        ValueError: the two were not scored on the same items.
    """
    (right, before), chance = correct_of_both(found, dense), found["chance"]
    gain = before.mean() - chance
    gain = gain if gain > 0 else math.nan  # a dense model that guesses has nothing to lose
    share = (right.mean() - chance) / gain
    rest = (right - chance) - share * (before - chance)  # of each item
    half = 1.96 * rest.std(ddof=1) / math.sqrt(len(rest)) / gain
    low, high = share - half, share + half
    if found is not dense and (right == before).all():
        low, high = (share + sign * 3 / len(rest) / gain for sign in (-1, 1))
    elif found is not dense and right.sum() < FEW:
        low, high = ((end - chance) / gain for end in _exact_interval(right))
    means = {"accuracy": right.mean(), "dense": before.mean(), "share": share}
    return {"items": len(rest), "chance": chance, **means, "low": low, "high": high}


def _exact_interval(right):
    from scipy import stats  # half a second, for who needs an interval

    return stats.binomtest(int(right.sum()), len(right)).proportion_ci()


def correct_of_both(found: Mapping, other: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Which items two models answered rightly, 1 or 0 each; ValueError if they are not the same."""
    if found["sha256"] != other["sha256"]:
        raise ValueError("the two models were not scored on the same items")
    return _correct(found), _correct(other)


def _correct(scores):
    return np.array([int(digit) for digit in scores["correct"]])


def by_task(records: Sequence[dict]) -> pd.DataFrame:
    """One row a cut and task, of records whose one-shot curve was scored on tasks.

    Returns:
        DataFrame with model, criterion, scope, seed, sparsity, ratio (of the perplexities on the
        validation text, after the cut to before it), task, and what `retained` returns. The dense
        model is the cut at sparsity 0.
    """
    rows = []
    for record in records:
        whole, curve = record.get("tasks") or {}, record.get("one_shot_curve") or []
        before = record["metrics"]["validation"]["nll"]
        for point in _with_dense(curve, whole, before):
            arm = record["model"]["name"], point["criterion"], point["scope"], record["seed"]
            ratio = exp(point["validation"]["nll"] - before)
            for task in [name for name in ABILITIES if name in point.get("tasks", {})]:
                values = retained(point["tasks"][task], whole[task]).values()
                rows.append((*arm, point["sparsity"], ratio, task, *values))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _with_dense(curve, tasks, nll):
    scored = [point for point in curve if point.get("tasks")]
    if not scored:
        return []
    return [scored[0] | {"sparsity": 0.0, "validation": {"nll": nll}, "tasks": tasks}, *scored]


def groups(records: Sequence[dict], task: str) -> pd.DataFrame:
    """Accuracy of a task by group of its items, such as the fields of BLiMP.

    Returns:
        DataFrame with criterion, scope, sparsity, group, accuracy, half_width (1.96 standard
        errors) and items.
    """
    rows = []
    for record in records:
        curve, whole = record.get("one_shot_curve") or [], record.get("tasks") or {}
        for point in _with_dense(curve, whole, 0.0):
            for group, each in point["tasks"].get(task, {}).get("by", {}).items():
                half = 1.96 * each["metrics"]["acc_stderr"]
                arm = point["criterion"], point["scope"], point["sparsity"]
                rows.append((*arm, group, each["metrics"]["acc"], half, each["samples"]))
    columns = ["criterion", "scope", "sparsity", "group", "accuracy", "half_width", "items"]
    return pd.DataFrame(rows, columns=columns)


def first_lost(rows: pd.DataFrame, share: float = 0.5) -> pd.DataFrame:
    """Of each criterion and ability, from which measured sparsity on it is less than before.

    Args:
        rows: of `by_task`.  share: of what the dense model has, see `at most`.

    Returns:
        DataFrame: index criterion and ability; `less`, the lowest sparsity whose interval lies
        below all of the dense model's ability, and `at most`, the lowest sparsity whose interval
        lies below `share` of it; NaN if there is none. Ends of several seeds are averaged.
    """
    found = {}
    for (criterion, task), group in rows.groupby(["criterion", "task"], sort=False):
        limits, high = {"less": 1.0, "at most": share}, group.groupby("sparsity").high.mean()
        found[CRITERIA[criterion][0], ABILITIES[task][0]] = {
            name: high[high < limit].index.min() for name, limit in limits.items()
        }
    index = ["criterion", "ability"]
    return pd.DataFrame(found).T.rename_axis(index) if found else pd.DataFrame(columns=["less"])


def answer(records: Sequence[dict], criterion: str = "sparsegpt") -> str:
    """What is left after each cut by one criterion, in sentences; '' if no task was scored.

    Of each sparsity the intervals are those of `retained`; '' as well if there is more than one
    such cut, of several models or seeds.
    """
    rows, perplexities = _of_one_cut(by_task(records), criterion), _perplexities(records, criterion)
    rows = rows[(rows.sparsity > 0) & rows.share.notna()]
    lines = []
    for sparsity, each in rows.groupby("sparsity"):
        left = ", ".join(
            f"{ABILITIES[task][0]} {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
            for task, share, low, high in each[["task", "share", "low", "high"]].values
        )
        lines.append(
            f"- **{100 * sparsity:.0f} % of the block weights gone**, not retrained: perplexity "
            f"{perplexities[sparsity]}; left of what the dense model can, above a guess: {left}."
        )
    return "\n".join(lines)


def _perplexities(records, criterion):
    """{sparsity: by how much a cut raised the perplexity of each text}, in words."""
    rows = cuts.cuts([record for record in records if record.get("tasks")])
    rows = _of_one_cut(rows, criterion)
    names, words = {cuts.OWN: "text of the kind that calibrated it"} | TEXT_LABELS, {}
    for sparsity, text, nats in rows[["sparsity", "text", "nats"]].values:
        words.setdefault(sparsity, []).append(f"{exp(nats):.2f} x on {names.get(text, text)}")
    return {sparsity: " and ".join(each) for sparsity, each in words.items()}


def _of_one_cut(rows, criterion):
    """Rows of `by_task` by one criterion but for patterns; none if they are of several cuts."""
    rows = rows[(rows.criterion == criterion) & ~rows.scope.astype(str).str.contains(":")]
    several = len(rows[["model", "scope", "seed"]].drop_duplicates()) > 1
    return rows[:0] if several else rows


def verdict(records: Sequence[dict], criterion: str = "sparsegpt") -> str:
    """One sentence: what is lost at the lowest sparsity that takes a fact; '' if none was.

    It is of the lowest measured sparsity after which less is left of the capitals that are
    produced, the whole interval below all of it.
    """
    rows = _of_one_cut(by_task(records), criterion)
    facts = rows[(rows.task == "capitals_produced") & (rows.high < 1)]
    share = facts.sparsity.min()
    here = rows[rows.sparsity == share].set_index("task")
    if facts.empty or "blimp" not in here.index:
        return ""
    grammar, fact = (
        "{:.0f} % ({:.0f} to {:.0f})".format(*100 * here.loc[task, ["share", "low", "high"]])
        for task in ("blimp", "capitals_produced")
    )
    return (
        f"With {100 * share:.0f} % of a real language model's block weights cut "
        f"({CRITERIA[criterion][0]}, not retrained), perplexity rises to "
        f"{_perplexities(records, criterion)[share]}, {grammar} of its grammar above a guess is "
        f"left, and it writes {fact} as many capital cities."
    )


def same_items(records: Sequence[dict], task: str, items: Sequence[str]) -> pd.DataFrame:
    """Which items the dense model answers rightly, and which of them are still right after a cut.

    Args:
        items: what stands for each, in the order of the task.

    Returns:
        DataFrame of booleans: a row an item that the dense model has right, a column (criterion,
        sparsity); of several seeds the first.
    """
    columns, right = {}, None
    for record in records:
        whole = record.get("tasks") or {}
        for point in _with_dense(record.get("one_shot_curve") or [], whole, 0.0):
            name = CRITERIA[point["criterion"]][0], point["sparsity"]
            columns.setdefault(name, _correct(point["tasks"][task]))
        right = _correct(whole[task]).astype(bool) if right is None else right
    return pd.DataFrame(columns, index=pd.Index(items)).astype(bool)[right]


def curves(rows: pd.DataFrame) -> Figure:
    """Share of each ability that is left against sparsity, a panel a criterion and scope.

    Args:
        rows: of `by_task`. Seeds are averaged, and so are the ends of their intervals.
    """
    cut = rows[rows.sparsity > 0]
    arms = [
        (name, scope) for name in CRITERIA for scope in cut.scope[cut.criterion == name].unique()
    ][::-1]
    figure, panels = plt.subplots(
        1, len(arms), figsize=(3.7 * len(arms) + 0.6, 4.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, (criterion, scope) in zip(panels[0], arms, strict=True):
        for place, (task, (label, colour, marker)) in enumerate(ABILITIES.items()):
            mine = rows[(rows.criterion == criterion) & (rows.scope == scope)]
            mine = mine[mine.task == task]
            aside = Affine2D().translate(0.008 * (place - 2.5), 0)  # bars stand side by side
            style = {"color": colour, "transform": aside + axes.transData}
            if len(mine):
                mine = mine.groupby("sparsity")[["share", "low", "high"]].mean()
                errors = np.array([mine.share - mine.low, mine.high - mine.share])
                lines = "--" if task.endswith("_produced") else "-"
                axes.plot(mine.share, marker=marker, linestyle=lines, label=label, **style)
                axes.errorbar(mine.index, mine.share, yerr=errors, fmt="none", **style)
        axes.axhline(0, color="#999999", linewidth=0.8)
        several = sum(name == criterion for name, _ in arms) > 1
        title = CRITERIA[criterion][0] + f", {scope}" * several
        axes.set(title=title, xlabel="sparsity of the block matrices")
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
    panels[0][0].set_ylabel("left of the dense model's, above a guess")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9.5, frameon=False)
    return figure
