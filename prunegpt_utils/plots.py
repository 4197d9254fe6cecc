"""Figures: one style, one colour a method, each function takes data and returns a figure."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import FuncFormatter, NullFormatter

from prunegpt_utils.tables import METHODS, number, summary

INK = "#222222"


def style():
    """Set the look of all figures; call once a notebook."""
    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans")
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 200, "savefig.bbox": "tight", "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": "#999999", "grid.color": "#e6e6e6",
        "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 12,
        "axes.labelsize": 10.5, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
        "legend.frameon": False, "svg.hashsalt": "prunegpt", "text.color": INK,
    })  # fmt: skip


def save(figure, folder, name):
    """Write PNG and SVG whose bytes depend on the data alone; return the PNG's path."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    return folder / f"{name}.png"


def perplexity_by_sparsity(table, curve, title):
    """The answer in one picture: perplexity (log) against sparsity, a line a method.

    Args:
        table: of `tables.frame`.  curve: of `tables.curve`.  title: str.
    """
    figure, axes = plt.subplots(figsize=(8.6, 5.2))
    means = summary(table)
    floor = means[means.recipe == "control"].perplexity.mean()
    shot = curve[(curve.scope == "global") & (curve.criterion == "fisher")]
    shot = shot.groupby("sparsity").perplexity.mean()
    _line(axes, shot.index, shot, None, "one-shot", dashes=":")
    for recipe in ("original", "gradual", "gradual-distilled", "two-four", "two-four-distilled"):
        rows = means[means.recipe == recipe].sort_values("sparsity")
        if len(rows):
            _line(axes, rows.sparsity, rows.perplexity, rows.spread, recipe)
    for recipe, dashes in (("zero-shot", (0, (1, 2))), ("control", (0, (6, 3)))):
        rows = means[means.recipe == recipe]
        if len(rows):
            label, colour, _ = METHODS[recipe]
            axes.axhline(rows.perplexity.mean(), color=colour, linestyle=dashes, linewidth=1.4)
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
    _plain_log(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.97), fontsize=9.5)
    return figure


def speed_by_sparsity(table):
    """How many times as fast as dense, against sparsity, with the break-even point marked.

    Args:
        table: DataFrame with sparsity, use, and `dense / csr`.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    looks = {"writing": ("#0072B2", "o"), "reading": ("#D55E00", "s")}
    for use, rows in table.groupby("use", sort=False):
        colour, marker = looks[use]
        x, y = rows.sparsity.to_numpy(), rows["dense / csr"].to_numpy()
        axes.plot(x, y, color=colour, marker=marker, label=use)
        log = np.log(y)
        if log[0] < 0 < log[-1]:  # sparsity and log speed, interpolated where the line is crossed
            even = np.interp(0, log, x)
            axes.annotate(
                f"breaks even at {100 * even:.0f} %", (even, 1), (8, -16), color=colour,
                textcoords="offset points", fontsize=9.5,
            )  # fmt: skip
    axes.axhline(1, color="#000000", linewidth=1.2, linestyle=(0, (6, 3)))
    axes.text(0.65, 0.985, "dense", va="top", ha="center", fontsize=9.5)
    axes.set(
        yscale="log", xlabel="sparsity of the block matrices", ylabel="times as fast as dense",
        title="When skipping zeros pays, on this processor",
    )  # fmt: skip
    _percent(axes)
    _plain_log(axes)
    axes.legend(loc="upper left")
    return figure


def one_shot_curves(curve):
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
    axes.set(
        yscale="log", xlabel="sparsity of the block matrices", ylabel="validation perplexity",
        title="Cut once, nothing retrained",
    )  # fmt: skip
    _percent(axes)
    _plain_log(axes)
    axes.legend(fontsize=9.5)
    return figure


def training_history(histories):
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
    _plain_log(axes[0, 0])
    axes[0, 0].legend(fontsize=9.5)
    if pruned:
        axes[1, 0].set(ylabel="sparsity", ylim=(0, 1.05))
        axes[1, 0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    axes[-1, 0].set_xlabel("optimizer steps")
    figure.align_ylabels()
    return figure


def layer_profile(sparsities, title):
    """Heat map of the sparsity of every matrix: a row a block, a column a kind of matrix.

    Args:
        sparsities: of `masks.by_matrix`.  title: str.
    """
    cells = {}
    for name, value in sparsities.items():
        parts = name.split(".")
        block = next(index for index, part in enumerate(parts) if part.isdigit())
        cells.setdefault(int(parts[block]), {})[".".join(parts[block + 1 : -1])] = 100 * value
    kinds = list(next(iter(cells.values())))
    values = [[cells[block][kind] for kind in kinds] for block in sorted(cells)]
    figure, axes = plt.subplots(figsize=(1.6 * len(kinds) + 1.2, 0.45 * len(cells) + 1.4))
    sns.heatmap(
        values, annot=True, fmt=".1f", cmap="Blues", ax=axes, xticklabels=kinds, linewidths=1.5,
        yticklabels=[f"block {block}" for block in sorted(cells)], vmin=0, vmax=100, cbar=False,
    )  # fmt: skip
    axes.set_title(title)
    axes.tick_params(axis="y", rotation=0)
    return figure


def mask_picture(masks, titles):
    """Masks as pictures, kept weights dark: a panel a mask, all of shape (rows, columns)."""
    figure, axes = plt.subplots(1, len(masks), figsize=(3.6 * len(masks), 3.5), squeeze=False)
    for panel, mask, title in zip(axes[0], masks, titles, strict=True):
        panel.imshow(mask.cpu(), cmap="Blues", vmin=0, vmax=1.15, interpolation="nearest")
        panel.set_title(title, fontsize=10.5)
        panel.set(xticks=[], yticks=[])
        panel.grid(visible=False)
    figure.tight_layout()
    return figure


def _line(axes, x, y, spread, recipe, dashes="-"):
    label, colour, marker = METHODS[recipe]
    axes.plot(x, y, marker=marker, color=colour, label=label, linestyle=dashes, markersize=6)
    if spread is not None and spread.notna().any():
        axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.2, linewidth=0)


def _percent(axes):
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def _plain_log(axes):
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: number(value).removesuffix(".00"))
    )
    low, high = axes.get_ylim()
    few = high / low < 30
    if few:
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_minor_formatter(NullFormatter())
