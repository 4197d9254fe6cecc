"""Figures that compare runs: each function takes data frames and returns a figure."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from prunegpt_utils.report.figure_files import INK, left_out, legend, log_axes, plain_log_axis
from prunegpt_utils.report.frames import pareto_front, summary
from prunegpt_utils.report.methods import CRITERIA, METHODS, style_of
from prunegpt_utils.report.statistics import half_width

CONTROL_DASHES = (0, (6, 3))
PERPLEXITY, SPARSITY = "validation perplexity", "sparsity of the block matrices"
_RANKED = {"global": "over all matrices", "uniform": "in each matrix", "per-row": "in each row"}


def perplexity_by_sparsity(table: pd.DataFrame, title: str) -> Figure | None:
    """The answer in one picture: test perplexity (log) against sparsity, a line a method.

    Args:
        table: of `frames.frame`.
    """
    means = summary(table)
    means = means.assign(perplexity=means.test, spread=means.test_spread)
    levels = _finite(means.set_index("recipe").perplexity)
    if levels.empty:
        return left_out("perplexity against sparsity", "these records hold no perplexity of a run")
    figure, axes = plt.subplots(figsize=(7.4, 4.8))
    drawn = ("one-shot", "original", "narrow", "narrow-distilled", "gradual", "gradual-distilled")
    for recipe in (*drawn, "two-four", "two-four-distilled"):
        rows = means[means.recipe == recipe].set_index("sparsity").sort_index()
        if len(rows):
            _line(axes, rows.perplexity, METHODS[recipe])
            _band(axes, rows, METHODS[recipe][1])
    floor = levels.min()
    # a model that a cut destroyed is not to squeeze all others into a corner
    top = max(levels[levels < 10 * floor])
    log_axes(
        axes, percent=True, xlim=(-0.02, 1), ylim=(floor * 0.88, max(top * 1.5, floor * 4)),
        title=title, xlabel=SPARSITY, ylabel="test perplexity (lower is better)",
    )  # fmt: skip
    legend(axes, loc="upper left", bbox_to_anchor=(0.0, 0.97), fontsize=9.5)
    _levels(axes, means, table.dense.dropna())  # after the legend, which is not to repeat them
    return figure


def _finite(values):
    """Values without those that overflowed or are missing."""
    return values[np.isfinite(values.astype(float))]


def _line(axes, curve, style, markersize=6, **options):
    """Draw a Series against its index, with gaps where a perplexity overflowed."""
    label, colour, marker = style
    curve = curve.where(np.isfinite(curve.astype(float)))
    options |= {} if curve.count() > 1 else {"linestyle": ""}  # no legend of a line not drawn
    axes.plot(curve, marker=marker, color=colour, label=label, markersize=markersize, **options)


def _band(axes, rows, colour):
    """One standard deviation over seeds to both sides."""
    if rows.spread.notna().any():
        low, high = rows.perplexity - rows.spread, rows.perplexity + rows.spread
        axes.fill_between(rows.index, low, high, color=colour, alpha=0.2, linewidth=0)


def _levels(axes, means, dense):
    """The dense models, each a level line with its name on it; the best one below its line."""
    best = dense.mode().iloc[0] if len(dense) else "control"  # of most runs
    for recipe, dashes in (("zero-shot", (0, (1, 2))), (best, CONTROL_DASHES)):
        rows, below = means[means.recipe == recipe], recipe == best
        level = rows.perplexity.mean()
        if np.isfinite(level):  # the study has it
            label, colour, _ = _style(rows)
            label = f"best dense model: {label.split(':')[0]}" if below else label
            axes.axhline(level, color=colour, linestyle=dashes, lw=1.4, label=label)
            height, side = (level * 0.985, "top") if below else (level * 1.015, "bottom")
            axes.text(0.01, height, label, fontsize=9.5, va=side)


COSTS = {  # column of `frames.costs` -> (unit, label of the axis, title, what the front beats)
    "bytes": (
        1e6, "megabytes: values that are not zero, and a bit a weight to find them",
        "What a byte buys", "smaller"),
    "time": (
        1, "time to write a token, 1 = dense; measured on a model of GPT-2's shape",
        "What a millisecond buys", "faster"),
    "weights": (1e6, "millions of block weights that are not zero", "At equal weights", "smaller"),
    "bytes16": (
        1e6, "megabytes: 16-bit values that are not zero, and a bit a weight to find them",
        "At equal bytes", "smaller"),
    "flops": (
        1e12, "training of student and teacher, 10¹² operations", "At equal compute", "cheaper"),
}  # fmt: skip


def perplexity_by_cost(costs: pd.DataFrame, cost: str, split: str = "validation") -> Figure | None:
    """What compression costs: perplexity (log) against bytes or time, what nothing beats ringed.

    Args:
        costs: of `frames.costs`; models that were cut and not retrained are left out.
        cost: key of `COSTS`.  split: validation or test.
    """
    unit, xlabel, title, better = COSTS[cost]
    levels = costs.test if split == "test" else costs.perplexity
    costs = costs.assign(x=costs[cost] / unit, perplexity=levels)
    costs = costs[costs.base_recipe != "one-shot"]  # beside which nothing else could be told apart
    costs = costs[np.isfinite(costs.x.astype(float)) & np.isfinite(costs.perplexity.astype(float))]
    if costs.empty:
        return left_out(f"perplexity against {cost}", "these records hold no run with both")
    figure, axes = plt.subplots(figsize=(7.4, 4.8))
    # lengths of training cost more or less: of such a cost a line is one recipe at one sparsity
    parts = ["recipe", "sparsity"] if cost == "flops" else ["recipe"]
    for _, rows in costs.groupby(parts, sort=False):
        curve = rows.set_index("x").perplexity.sort_index()
        dashes = _dashes(rows.sparsity.iloc[0]) if cost == "flops" else "-"
        _line(axes, curve, _style(rows), linestyle=dashes)
    front = pareto_front(costs, cost)
    best = costs[front].sort_values("x")
    axes.plot(
        best.x, best.perplexity, "o", color=INK, fillstyle="none", markersize=13,
        label=f"Pareto front: nothing is both {better} and better",
    )  # fmt: skip
    # no line says which point is which where it is of one sparsity; a small model has none
    whole = (costs.weights == costs.weights.max()) & front
    for row in costs[whole | ((costs.sparsity > 0) & (front | (cost == "flops")))].itertuples():
        place, side = ((-10, -17), "center") if front[row.Index] else ((8, -3), "left")
        axes.annotate(
            f"{100 * row.sparsity:.0f} %" if row.sparsity else "dense", (row.x, row.perplexity),
            place, textcoords="offset points", fontsize=9, ha=side,
        )  # fmt: skip
    low, last = 0.85 * costs.perplexity.min(), costs.x.max()  # room for the labels
    log_axes(axes, xlabel=xlabel, ylabel=f"{split} perplexity", title=title, ylim=(low, None))
    axes.set_xlim(-0.03 * last, 1.1 * last)
    if cost == "weights":  # most models are near the origin
        axes.set(xscale="log", xlim=(0.75 * costs.x.min(), 1.3 * last))
        plain_log_axis(axes.xaxis)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each once
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(named) > 5 else {}
    axes.legend(named.values(), named.keys(), fontsize=9, **beside)
    return figure


def _dashes(share):
    """Of a line at one sparsity: the more is gone, the less is drawn."""
    return "-" if share == 0 else "--" if share < 0.7 else ":"


def _style(rows):
    """Label, colour and marker of rows of one recipe."""
    return style_of(*rows[["base_recipe", "axes"]].iloc[0])


def perplexity_by_steps(table: pd.DataFrame, title: str) -> Figure | None:
    """Perplexity against the length of training, both logarithmic, a line a recipe.

    Args:
        table: of `frames.by_steps`.
    """
    if _finite(table.perplexity).empty:
        return left_out("perplexity against steps", "no length of training is an axis here")
    figure, axes = plt.subplots(figsize=(7.4, 4.6))
    for _, rows in table.groupby("recipe", sort=False):
        # a variant of a recipe is hollow
        face = {"markerfacecolor": "white"} if rows["axes"].iloc[0] else {}
        _line(axes, rows.groupby("steps").perplexity.mean(), _style(rows), **face)
    ylabel, xlabel = f"{PERPLEXITY} (lower is better)", "optimizer steps after fine-tuning"
    log_axes(axes, xscale="log", title=title, xlabel=xlabel, ylabel=ylabel)
    steps = sorted(table.steps.unique())
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.xaxis.set_minor_locator(NullLocator())
    legend(axes, fontsize=9.5)
    return figure


def perplexity_by_rate(rows: pd.DataFrame, chosen: pd.DataFrame) -> Figure | None:
    """Perplexity (log) against the learning rate, a line an arm; a panel a text.

    Args:
        rows: of `controls.sweep`.  chosen: those of them that validation chose, ringed.
    """
    if not (rows.loc[_finite(rows.perplexity).index].groupby("arm").lr.nunique() > 1).any():
        return left_out("perplexity against the learning rate", "no arm has two of them")
    figure, panels = plt.subplots(1, 2, figsize=(12.5, 4.8))
    for axes, split in zip(panels, ("perplexity", "test"), strict=True):
        for arm, mine in rows.groupby("arm", sort=False):
            _, colour, marker = style_of(mine.base_recipe.iloc[0], {})
            dashes = _dashes(mine.requested.iloc[0])
            _line(axes, mine.groupby("lr")[split].mean(), (arm, colour, marker), linestyle=dashes)
        best = chosen.groupby("arm", sort=False)[["lr", split]].mean()
        axes.plot(
            best.lr, best[split], "o", color=INK, fillstyle="none", markersize=13,
            label="chosen on the validation text",
        )  # fmt: skip
        name = {"perplexity": "validation"}.get(split, split)
        log_axes(
            axes, xscale="log", title=f"The {name} text", ylabel=f"{name} perplexity",
            xlabel="peak learning rate",
        )  # fmt: skip
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    panels[1].legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    return figure


def criteria_curves(curves: pd.DataFrame) -> Figure | None:
    """Perplexity (log) against sparsity after one cut, a line a criterion and scope.

    Args:
        curves: of `frames.one_shot_curves`, of one base model.
    """
    if _finite(curves.perplexity).empty:
        return left_out("the one-shot curves", "no cut left a perplexity that is a number")
    if "model" in curves and curves.model.nunique() > 1:
        return left_out("the one-shot curves", "they are of several base models")
    figure, axes = plt.subplots(figsize=(7.6, 4.8))
    for criterion in dict.fromkeys([*CRITERIA, *curves.criterion]):
        label, *look = CRITERIA.get(criterion, (criterion, "#000000", "P"))
        for scope, rows in curves[curves.criterion == criterion].groupby("scope"):
            style = (f"{label}, {_RANKED.get(scope, scope)}", *look)
            each = {} if scope == "global" else {"linestyle": "--", "markerfacecolor": "white"}
            curve = rows.groupby("sparsity").perplexity.mean()
            each |= {"linestyle": "none"} if len(curve) < 3 else {}  # a cut, and no curve
            _line(axes, curve, style, **each)
    title = "Cut once, nothing retrained"
    log_axes(axes, percent=True, xlabel=SPARSITY, ylabel=PERPLEXITY, title=title)
    legend(axes, fontsize=9.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def before_and_after(rows: pd.DataFrame, control: float, title: str) -> Figure | None:
    """Perplexity (log) right after the cut and after retraining: a panel a level.

    Args:
        rows: of `frames.with_one_shot`.  control: perplexity of the dense control.
    """
    levels, drawn = list(rows.level.unique()), []
    if not levels:
        return left_out("the cut and the retraining", "these records hold no pruned run")
    styles = CRITERIA | {method: METHODS[method] for method in ("gradual", "gradual-distilled")}
    size = (3.1 * len(levels), 4.6)
    figure, panels = plt.subplots(1, len(levels), figsize=size, sharey=True, squeeze=False)
    for axes, level in zip(panels[0], levels, strict=True):
        panel = level.replace(" %", " % gone")
        if np.isfinite(control):
            axes.axvline(control, color=INK, linestyle=CONTROL_DASHES, linewidth=1.3)
        drawn.append((panel, "dense control", "the end", control))
        drawn += _both_ends(axes, rows[rows.level == level], styles, panel)
        axes.set(xscale="log", xlabel=PERPLEXITY, title=panel)
        plain_log_axis(axes.xaxis)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.grid(visible=False, axis="y")
    panels[0, 0].set_yticks(range(len(styles)), [name for name, *_ in reversed(styles.values())])
    figure.drawn = pd.DataFrame(drawn, columns=["panel", "series", "x", "y"])
    handles = [
        Line2D([], [], marker="o", color=INK, ls="", fillstyle="none", label="right after the cut"),
        Line2D([], [], marker="o", color=INK, ls="", label="retrained"),
        Line2D([], [], color=INK, linestyle=CONTROL_DASHES, label="dense control"),
    ]
    figure.legend(handles=handles, loc="upper right", ncols=3, fontsize=9.5)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.tight_layout()
    return figure


def _both_ends(axes, rows, styles, panel):
    """Draw the means of each method; return what was drawn, for the figure's data."""
    drawn = []
    for place, (method, (name, colour, marker)) in enumerate(reversed(styles.items())):
        mine = rows[rows.method == method]
        means = mine[["one_shot", "perplexity"]].astype(float).mean()
        values = means.where(np.isfinite(means))
        axes.plot(values, [place, place], color=colour, alpha=0.45, linewidth=2)
        for end, value, fill in zip(("the cut", "the end"), values, ("none", "full"), strict=True):
            axes.plot(value, place, marker, color=colour, fillstyle=fill, markersize=8)
            drawn += [(panel, name, end, value)] if value == value else []
    return drawn


def changes(rows: pd.DataFrame, title: str) -> Figure | None:
    """What each change to a recipe does: a line a change, its mean dark, each seed light.

    Blue is better, orange is worse, and grey is what the seeds cannot tell from no change: the 95 %
    interval of `statistics.half_width` holds zero.

    Args:
        rows: DataFrame with change, seed and percent (difference of perplexity), in order.
    """
    rows = rows.dropna(subset="percent")
    overflowed = rows.change[np.isinf(rows.percent.astype(float))].unique()
    if len(overflowed):
        left_out(f"these changes ({', '.join(overflowed)})", "a perplexity overflowed")
    rows = rows[~rows.change.isin(overflowed)]
    names = list(rows.change.unique())
    if not names:
        return left_out("the changes", "no run differs from the recipe by one")
    figure, axes = plt.subplots(figsize=(8.0, 0.34 * len(names) + 1.3))
    for place, name in enumerate(reversed(names)):
        values = rows[rows.change == name].percent
        significant = abs(values.mean()) > half_width(values)
        colour = "#999999" if not significant else "#0072B2" if values.mean() < 0 else "#D55E00"
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.35, markersize=5)
        axes.plot([0, values.mean()], [place, place], color=colour, linewidth=2)
        axes.plot(values.mean(), place, "D", color=colour, markersize=6.5)
    axes.axvline(0, color="#000000", linewidth=1.2)
    axes.set_yticks(range(len(names)), reversed(names))
    xlabel = "change of validation perplexity, % (left is better)"
    axes.set(xlabel=xlabel, title=title, ylim=(-0.6, len(names) - 0.4))
    axes.grid(visible=False, axis="y")
    drawn = rows.assign(panel=title, series=rows.change, x="seed " + rows.seed.astype(str))
    figure.drawn = drawn.rename(columns={"percent": "y"})[["panel", "series", "x", "y"]]
    return figure
