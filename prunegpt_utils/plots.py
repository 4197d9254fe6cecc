"""Figures: one style, one colour a method, each function takes data and returns a figure."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from prunegpt_utils.tables import CRITERIA, METHODS, front, half_width, look, number, summary

INK = "#222222"


def style() -> None:
    """Set the look of all figures; call once a notebook."""
    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans")
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 200, "savefig.bbox": "tight", "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": "#999999", "grid.color": "#e6e6e6",
        "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 12,
        "axes.labelsize": 10.5, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
        "legend.frameon": False, "svg.hashsalt": "prunegpt", "text.color": INK,
    })  # fmt: skip


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write PNG, SVG and the drawn data as CSV, bytes that depend on the data alone.

    PNG and SVG carry `description` with them, where a page finds its alternative text.

    Returns:
        Path of the PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = {"Title": name, "Description": description(figure)}
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, **said})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None, **said})
    points(figure).to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    return folder / f"{name}.png"


def points(figure: Figure) -> pd.DataFrame:
    """The data of a figure as it is drawn.

    Returns:
        DataFrame with panel (title), series, x, y: a row a point of a line that has a label (x is
        empty where the line is level, from edge to edge), or a row a cell of a heat map; or what
        the figure itself says was drawn, where a line is not what carries a series.
    """
    if hasattr(figure, "drawn"):
        return figure.drawn
    rows = []
    for axes in figure.axes:
        panel = _title(axes)
        for line in axes.lines:
            level = line.get_transform() != axes.transData
            pairs = [("", line.get_ydata()[0])] if level else line.get_xydata().tolist()
            named = not str(line.get_label()).startswith("_")
            rows += [(panel, line.get_label(), x, y) for x, y in pairs if named]
        for mesh in axes.collections:
            if isinstance(mesh, matplotlib.collections.QuadMesh):
                across, down = (
                    [text.get_text() for text in labels]
                    for labels in (axes.get_xticklabels(), axes.get_yticklabels())
                )
                values = mesh.get_array().reshape(len(down), len(across)).tolist()
                rows += [
                    (panel, name, x, value)
                    for name, cells in zip(down, values, strict=True)
                    for x, value in zip(across, cells, strict=True)
                ]
    return pd.DataFrame(rows, columns=["panel", "series", "x", "y"])


def description(figure: Figure) -> str:
    """Alternative text: what the axes are, and where each series begins and ends, in numbers."""
    said, axes = [], {_title(axes): axes for axes in figure.axes}
    for panel, rows in points(figure).groupby("panel", sort=False):
        place = axes[panel]
        labels = [place.get_ylabel(), place.get_xlabel() or figure.axes[-1].get_xlabel()]
        names = " against ".join(filter(None, labels))
        said.append(names if names.startswith(panel) else f"{panel}: {names}".removesuffix(": "))
        for series, mine in rows.groupby("series", sort=False):
            first, last = (_said(place, mine.iloc[end]) for end in (0, -1))
            said.append(f"{series}: {first}" + (f" to {last}" if len(mine) > 1 else ""))
    return ". ".join(filter(None, said))


def _title(axes):
    return axes.get_title(loc="left") or axes.get_title() or axes.get_ylabel()


def _said(axes, row):
    """One point in words; its x as the axis writes it, where the axis has a way of its own."""
    if row.x == "":
        return number(row.y)
    write = axes.xaxis.get_major_formatter()
    own = isinstance(write, FuncFormatter) and not isinstance(row.x, str)
    x = write(row.x) if own else row.x if isinstance(row.x, str) else f"{row.x:,.4g}"
    return f"{number(row.y)} at {x}"


def perplexity_by_sparsity(table: pd.DataFrame, curve: pd.DataFrame, title: str) -> Figure:
    """The answer in one picture: perplexity (log) against sparsity, a line a method.

    Args:
        table: of `tables.frame`.  curve: of `tables.curve`.  title: str.
    """
    figure, axes = plt.subplots(figsize=(7.4, 4.8))
    means = summary(table)
    control = means[means.recipe == "control"]
    floor = (control if len(control) else means).perplexity.min()
    shot = curve[(curve.scope == "global") & (curve.criterion == "fisher")]
    shot = shot.groupby("sparsity").perplexity.mean()
    _line(axes, shot.index, shot, None, "one-shot", dashes=":")
    drawn = ("original", "narrow", "narrow-distilled", "gradual", "gradual-distilled")
    for recipe in (*drawn, "two-four", "two-four-distilled"):
        rows = means[means.recipe == recipe].sort_values("sparsity")
        if len(rows):
            _line(axes, rows.sparsity, rows.perplexity, rows.spread, recipe)
    level = {}
    for recipe, dashes in (("zero-shot", (0, (1, 2))), ("control", (0, (6, 3)))):
        rows = means[means.recipe == recipe]
        if len(rows):
            label, colour, _ = METHODS[recipe]
            line = axes.axhline(rows.perplexity.mean(), color=colour, linestyle=dashes, lw=1.4)
            level[line] = label
            below = recipe == "control"
            height = rows.perplexity.mean() * (0.985 if below else 1.015)
            axes.text(
                0.01, height, label, color=colour, fontsize=9.5, va="top" if below else "bottom"
            )
    top = means[means.recipe != "one-shot"].perplexity.max()
    axes.set(
        yscale="log", xlim=(0, 1.0), ylim=(floor * 0.88, max(top * 1.5, floor * 4)), title=title,
        xlabel="sparsity of the block matrices", ylabel="validation perplexity (lower is better)",
    )  # fmt: skip
    _percent(axes)
    _plain_log(axes.yaxis)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.97), fontsize=9.5)
    for line, label in level.items():  # after the legend, which is not to repeat them
        line.set_label(label)
    return figure


def speed_by_share(table: pd.DataFrame) -> Figure:
    """How many times as fast as dense, against the share of weights gone; break-even marked.

    Args:
        table: DataFrame with gone, kind (sparse or narrow), use, and `times as fast`.
    """
    figure, axes = plt.subplots(figsize=(7.6, 4.6))
    looks = {"writing": ("#0072B2", "o"), "reading": ("#D55E00", "s")}
    for (kind, use), rows in table.groupby(["kind", "use"], sort=False):
        colour, marker = looks[use]
        x, y = rows.gone.to_numpy(), rows["times as fast"].to_numpy()
        dashes = "-" if kind == "sparse" else "--"
        axes.plot(x, y, dashes, color=colour, marker=marker, label=f"{kind}, {use}")
        log = np.log(y)
        if log[0] < 0 < log[-1]:  # share and log speed, interpolated where the line is crossed
            even = np.interp(0, log, x)
            axes.annotate(
                f"breaks even at {100 * even:.0f} %", (even, 1), (8, -16), color=colour,
                textcoords="offset points", fontsize=9.5,
            )  # fmt: skip
    axes.axhline(1, color="#000000", linewidth=1.2, linestyle=(0, (6, 3)))
    axes.text(0.34, 0.985, "dense", va="top", fontsize=9.5)
    axes.set(
        yscale="log", xlabel="share of the block weights gone", ylabel="times as fast as dense",
        title="What pays, on this processor",
    )  # fmt: skip
    _percent(axes)
    _plain_log(axes.yaxis)
    axes.legend(loc="upper left")
    return figure


def one_shot_curves(curve: pd.DataFrame) -> Figure:
    """Perplexity (log) against sparsity when nothing is retrained, a line a score and scope."""
    figure, axes = plt.subplots(figsize=(7.4, 4.2))
    looks = {
        ("global", "random"): ("at random", "#CC79A7", "v", "-"),
        ("global", "magnitude"): ("magnitude, of all matrices together", "#E69F00", "o", "-"),
        ("uniform", "magnitude"): ("magnitude, in each matrix", "#E69F00", "s", "--"),
        ("uniform", "fisher"): ("Fisher, in each matrix", "#0072B2", "s", "--"),
        ("global", "fisher"): ("Fisher, of all matrices together", "#0072B2", "o", "-"),
    }
    for (scope, criterion), (label, colour, marker, dashes) in looks.items():
        rows = curve[(curve.scope == scope) & (curve.criterion == criterion)]
        rows = rows.groupby("sparsity").perplexity.mean()
        axes.plot(rows.index, rows, dashes, marker=marker, color=colour, label=label, markersize=5)
    _cut_once(axes)
    axes.legend(fontsize=9.5)
    return figure


def _cut_once(axes):
    """Dress a figure of models that were cut once."""
    axes.set(
        yscale="log", xlabel="sparsity of the block matrices", ylabel="validation perplexity",
        title="Cut once, nothing retrained",
    )  # fmt: skip
    _percent(axes)
    _plain_log(axes.yaxis)


def criteria_curves(table: pd.DataFrame) -> Figure:
    """Perplexity (log) against sparsity after one cut, a line a criterion and scope.

    Args:
        table: DataFrame with criterion, scope, sparsity, perplexity.
    """
    figure, axes = plt.subplots(figsize=(7.6, 4.8))
    for criterion in dict.fromkeys([*CRITERIA, *table.criterion]):
        label, colour, marker = CRITERIA.get(criterion, (criterion, "#000000", "P"))
        mine = table[table.criterion == criterion]
        for scope, rows in mine.groupby("scope", sort=False):
            rows = rows.groupby("sparsity").perplexity.mean()
            axes.plot(
                rows.index, rows, "-" if scope == "global" else "--", marker=marker, color=colour,
                label=f"{label}, {scope}", markersize=5.5,
            )  # fmt: skip
    _cut_once(axes)
    axes.legend(fontsize=9.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def before_and_after(rows: pd.DataFrame, control: float, title: str) -> Figure:
    """Perplexity (log) right after the cut and after retraining: a panel a level.

    Args:
        rows: of `tables.with_one_shot`.  control: perplexity of the dense control.  title: str.
    """
    levels, methods = list(rows.level.unique()), [*CRITERIA, "gradual", "gradual-distilled"]
    figure, panels = plt.subplots(1, len(levels), figsize=(3.1 * len(levels), 4.6), sharey=True)
    looks = {method: (METHODS | CRITERIA)[method] for method in methods}
    drawn, ends = [], ("the cut", "the end")
    for axes, level in zip(np.atleast_1d(panels), levels, strict=True):
        panel = level.replace(" %", " % gone")
        axes.axvline(control, color=INK, linestyle=(0, (6, 3)), linewidth=1.3)
        drawn.append((panel, "dense control", "the end", control))
        for place, method in enumerate(reversed(methods)):
            mine = rows[(rows.level == level) & (rows.method == method)]
            name, colour, marker = looks[method]
            values = [mine.one_shot.mean(), mine.perplexity.mean()]
            axes.plot(values, [place, place], color=colour, alpha=0.45, linewidth=2)
            axes.plot(values[0], place, marker, color=colour, fillstyle="none", markersize=8)
            axes.plot(values[1], place, marker, color=colour, markersize=8)
            named = zip(ends, values, strict=True)
            drawn += [(panel, name, end, value) for end, value in named if value == value]
        axes.set(xscale="log", xlabel="validation perplexity", title=panel)
        _plain_log(axes.xaxis)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.grid(visible=False, axis="y")
    np.atleast_1d(panels)[0].set_yticks(
        range(len(methods)), [name for name, *_ in reversed(looks.values())]
    )
    figure.drawn = pd.DataFrame(drawn, columns=["panel", "series", "x", "y"])
    handles = [
        Line2D([], [], marker="o", color=INK, ls="", fillstyle="none", label="right after the cut"),
        Line2D([], [], marker="o", color=INK, ls="", label="retrained"),
        Line2D([], [], color=INK, linestyle=(0, (6, 3)), label="dense control"),
    ]
    figure.legend(handles=handles, loc="upper right", ncols=3, fontsize=9.5)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.tight_layout()
    return figure


def changes(rows: pd.DataFrame, title: str) -> Figure:
    """What each change to a recipe does: a line a change, its mean dark, each seed light.

    Blue is better, orange is worse, and grey is what the seeds cannot tell from no change: the 95 %
    interval of `tables.half_width` holds zero.

    Args:
        rows: DataFrame with change, seed and percent (difference of perplexity), in the order to
            be shown.
        title: str.
    """
    names = list(rows.change.unique())
    figure, axes = plt.subplots(figsize=(8.0, 0.34 * len(names) + 1.3))
    for place, name in enumerate(reversed(names)):
        values = rows[rows.change == name].percent
        told_apart = abs(values.mean()) > half_width(values)
        colour = "#999999" if not told_apart else "#0072B2" if values.mean() < 0 else "#D55E00"
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.35, markersize=5)
        axes.plot([0, values.mean()], [place, place], color=colour, linewidth=2)
        axes.plot(values.mean(), place, "D", color=colour, markersize=6.5)
    axes.axvline(0, color="#000000", linewidth=1.2)
    axes.set_yticks(range(len(names)), reversed(names))
    axes.set(xlabel="change of validation perplexity, % (left is better)", title=title)
    axes.grid(visible=False, axis="y")
    drawn = rows.assign(panel=title, series=rows.change, x="seed " + rows.seed.astype(str))
    figure.drawn = drawn.rename(columns={"percent": "y"})[["panel", "series", "x", "y"]]
    return figure


def perplexity_by_steps(table: pd.DataFrame, title: str) -> Figure:
    """Perplexity against the length of training, both logarithmic, a line a recipe.

    Args:
        table: of `tables.by_steps`.  title: str.
    """
    figure, axes = plt.subplots(figsize=(7.4, 4.6))
    means = table.groupby(["recipe", "steps"], sort=False).perplexity.mean().reset_index()
    for recipe, rows in means.groupby("recipe", sort=False):
        _line(axes, rows.steps, rows.perplexity, None, recipe)
    axes.set(
        xscale="log", yscale="log", title=title, xlabel="optimizer steps after fine-tuning",
        ylabel="validation perplexity (lower is better)",
    )  # fmt: skip
    steps = sorted(means.steps.unique())
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.xaxis.set_minor_locator(NullLocator())
    _plain_log(axes.yaxis)
    axes.legend(fontsize=9.5)
    return figure


def training_history(histories: dict) -> Figure:
    """Validation perplexity and sparsity on the way: {label: (rows of history, colour)}."""
    pruned = any(row["sparsity"] for rows, _ in histories.values() for row in rows)
    figure, axes = plt.subplots(
        1 + pruned, 1, sharex=True, squeeze=False, figsize=(7.4, 3.4 + 1.5 * pruned),
        height_ratios=[3, 1][: 1 + pruned],
    )  # fmt: skip
    for label, (rows, colour) in histories.items():
        steps = [row["step"] for row in rows]
        axes[0, 0].plot(
            steps,
            [2.718281828 ** row["nll"] for row in rows],
            "o-",
            color=colour,
            label=label,
            markersize=4,
        )
        if pruned:
            axes[1, 0].plot(
                steps, [row["sparsity"] for row in rows], "o-", color=colour, markersize=4
            )
    axes[0, 0].set(ylabel="validation perplexity", yscale="log")
    _plain_log(axes[0, 0].yaxis)
    axes[0, 0].legend(fontsize=9.5)
    if pruned:
        axes[1, 0].set(ylabel="sparsity", ylim=(0, 1.05))
        axes[1, 0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    axes[-1, 0].set_xlabel("optimizer steps")
    figure.align_ylabels()
    return figure


def layer_profile(percents: dict[str, float], title: str, top: float | None = 100) -> Figure:
    """Heat map of a percentage of every matrix: a row a block, a column a kind of matrix.

    Args:
        percents: {name of a matrix: number}.  title: str.
        top: what is drawn darkest; None: the largest number.
    """
    cells = {}
    for name, value in percents.items():
        parts = name.split(".")
        block = next(index for index, part in enumerate(parts) if part.isdigit())
        cells.setdefault(int(parts[block]), {})[".".join(parts[block + 1 : -1])] = value
    kinds = list(next(iter(cells.values())))
    values = [[cells[block][kind] for kind in kinds] for block in sorted(cells)]
    figure, axes = plt.subplots(figsize=(1.6 * len(kinds) + 1.2, 0.45 * len(cells) + 1.4))
    sns.heatmap(
        values, annot=True, fmt=".1f", cmap="Blues", ax=axes, xticklabels=kinds, linewidths=1.5,
        yticklabels=[f"block {block}" for block in sorted(cells)], vmin=0, vmax=top, cbar=False,
    )  # fmt: skip
    axes.set_title(title)
    axes.tick_params(axis="y", rotation=0)
    return figure


def mask_picture(masks: list, titles: list[str]) -> Figure:
    """Masks as pictures, kept weights dark: a panel a mask, all of shape (rows, columns)."""
    figure, axes = plt.subplots(1, len(masks), figsize=(3.6 * len(masks), 3.5), squeeze=False)
    for panel, mask, title in zip(axes[0], masks, titles, strict=True):
        panel.imshow(mask.cpu(), cmap="Blues", vmin=0, vmax=1.15, interpolation="nearest")
        panel.set_title(title, fontsize=10.5)
        panel.set(xticks=[], yticks=[])
        panel.grid(visible=False)
    figure.tight_layout()
    return figure


COSTS = {  # column of `tables.costs` -> (unit, label of the axis, title, what the front beats)
    "bytes": (
        1e6, "megabytes: values that are not zero, and a bit a weight to find them",
        "What a byte buys", "smaller",
    ),
    "time": (
        1, "time to write a token, 1 = dense; measured on a model of GPT-2's shape",
        "What a millisecond buys", "faster",
    ),
}  # fmt: skip


def perplexity_by_cost(costs: pd.DataFrame, cost: str) -> Figure:
    """What compression costs: perplexity (log) against bytes or time, what nothing beats ringed.

    Args:
        costs: of `tables.costs`.  cost: key of `COSTS`.
    """
    figure, axes = plt.subplots(figsize=(7.4, 4.8))
    unit, label, title, better = COSTS[cost]
    costs = costs[costs[cost].notna()]
    costs = costs.assign(x=costs[cost] / unit)
    for recipe, rows in costs.groupby("recipe", sort=False):
        name, colour, marker = look(recipe)
        axes.plot(
            rows.x, rows.perplexity, "-", marker=marker, color=colour, label=name, markersize=6
        )
    best = costs[front(costs, cost)].sort_values("x")
    axes.plot(
        best.x, best.perplexity, "o", color=INK, fillstyle="none", markersize=13,
        label=f"Pareto front: nothing is both {better} and better",
    )  # fmt: skip
    for row in best.itertuples():
        axes.annotate(
            f"{100 * row.sparsity:.0f} %" if row.sparsity else "dense", (row.x, row.perplexity),
            (-8, -13), textcoords="offset points", fontsize=9, ha="right",
        )  # fmt: skip
    axes.set(yscale="log", xlabel=label, ylabel="validation perplexity", title=title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0.85 * costs.perplexity.min())  # room for the last label
    _plain_log(axes.yaxis)
    axes.legend(fontsize=9)
    return figure


def study_graph(plan: dict, done: set[str]) -> Figure:
    """What stands on what: a box a recipe, to the right of all that it needs.

    Args:
        plan: of `studies.plan`.  done: names of the runs that are done.
    """
    recipes, needs = {}, {}
    for name, run in plan.items():
        recipe = run.parameters["recipe"]
        recipes.setdefault(recipe, []).append(name)
        theirs = {plan[need].parameters["recipe"] for need in run.needs}
        needs[recipe] = needs.get(recipe, set()) | theirs - {recipe}

    def depth(recipe):
        return 1 + max(map(depth, needs[recipe]), default=-1)

    def stands_on(recipe):
        return needs[recipe].union(*map(stands_on, needs[recipe]))

    direct = {  # what is needed anyway, by something else that is needed, goes without a line
        recipe: {n for n in theirs if not any(n in stands_on(m) for m in theirs)}
        for recipe, theirs in needs.items()
    }
    columns = {}
    for recipe in recipes:
        columns.setdefault(depth(recipe), []).append(recipe)
    tallest = max(map(len, columns.values()))
    figure, axes = plt.subplots(figsize=(3.4 * len(columns), 0.62 * tallest + 0.6))
    spots = {
        recipe: (column, (tallest - len(group)) / 2 + row)
        for column, group in columns.items()
        for row, recipe in enumerate(group)
    }
    for recipe, theirs in direct.items():
        for need in theirs:
            ends = np.array([spots[need], spots[recipe]])
            axes.plot(*ends.T, color="#bbbbbb", linewidth=1, zorder=1)
    for recipe, (x, y) in spots.items():
        count = sum(name in done for name in recipes[recipe])
        axes.text(
            x, y, f"{recipe}\n{count} of {len(recipes[recipe])} done", ha="center", va="center",
            fontsize=8.5, zorder=2, bbox={"boxstyle": "round,pad=0.4", "edgecolor": "#999999",
            "facecolor": "#d7e6f3" if count == len(recipes[recipe]) else "#ffffff"},
        )  # fmt: skip
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(tallest - 0.4, -0.6))
    axes.axis("off")
    return figure


def _line(axes, x, y, spread, recipe, dashes="-"):
    label, colour, marker = look(recipe)
    face = colour if recipe in METHODS else "white"  # a variant of a recipe is hollow
    axes.plot(
        x, y, marker=marker, color=colour, label=label, linestyle=dashes, markersize=6,
        markerfacecolor=face,
    )  # fmt: skip
    if spread is not None and spread.notna().any():
        axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.2, linewidth=0)


def _percent(axes):
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def _plain_log(axis):
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value).removesuffix(".00")))
    low, high = sorted(axis.get_view_interval())
    if high / low < 30:
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axis.set_minor_formatter(NullFormatter())
