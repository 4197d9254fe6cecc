"""Figures of one model: how it was trained, which of its weights are zero, how fast it is."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from prunegpt_utils.report.figure_files import left_out, log_axes, percent_axis
from prunegpt_utils.report.methods import METHODS


def training_history(histories: dict, title: str = "") -> Figure | None:
    """Validation perplexity and sparsity on the way.

    Args:
        histories: {label: (rows of history, colour)}, with a marker behind if it is not a circle.
    """
    histories = {label: of for label, of in histories.items() if of[0]}
    if not histories:
        return left_out("the training", "there was none")
    pruned = any(row["sparsity"] for rows, *_ in histories.values() for row in rows)
    figure, panels = plt.subplots(
        1 + pruned, 1, sharex=True, squeeze=False, figsize=(7.4, 3.4 + 1.5 * pruned),
        height_ratios=[3, 1][: 1 + pruned],
    )  # fmt: skip
    above, *below = panels[:, 0]
    for place, (label, (rows, colour, *marker)) in enumerate(histories.items(), 1):
        table, style = pd.DataFrame(rows), {"marker": "".join(marker) or "o", "color": colour}
        above.plot(table.step, np.exp(table.nll), label=label, markersize=4.5, **style)
        for axes in below:  # what coincides is told apart: the first is the widest
            over = (len(histories) - place) * table.sparsity.any()
            wide = {"markersize": 4.5 + 3 * over, "linewidth": 1.5 + 2 * over}
            axes.plot(table.step, table.sparsity, **wide, **style)
    log_axes(above, ylabel="validation perplexity", title=title)
    above.legend(fontsize=9.5)
    for axes in below:
        axes.set(ylabel="sparsity", ylim=(-0.12, 1.12), yticks=(0, 0.5, 1))
        percent_axis(axes.yaxis)
    panels[-1, 0].set_xlabel("optimizer steps")
    figure.align_ylabels()
    return figure


def layer_profile(percents: dict[str, float], title: str, top: float | None = 100) -> Figure:
    """Heat map of a percentage of every matrix: a row a block, a column a kind of matrix.

    Args:
        percents: {name of a matrix: number}.
        top: what is drawn darkest, 100 for shares of zeros; None: the largest number.
    """
    shares = pd.Series(percents)
    # h.0.mlp.c_fc.weight: 0, mlp.c_fc
    names = shares.index.str.extract(r"(?:^|\.)(\d+)\.(.+?)(?:\.weight)?$")
    cells = shares.set_axis([names[0].astype(int), names[1]]).unstack()[names[1].unique()]
    figure, axes = plt.subplots(figsize=(1.6 * cells.shape[1] + 2.2, 0.45 * len(cells) + 1.4))
    sns.heatmap(
        cells.values, ax=axes, annot=True, fmt=".1f", cmap="Blues", vmin=0, vmax=top,
        cbar_kws={"label": "zeros, %" if top else "%", "pad": 0.02},
        xticklabels=cells.columns, yticklabels="block " + cells.index.astype(str), linewidths=1.5,
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
    figure.tight_layout()
    return figure


KINDS = {  # of `seconds_by_share` -> (label, recipe that has its colour, marker)
    "sparse": ("zeros that are skipped", "gradual-distilled", "o"),
    "narrow": ("fewer neurons and heads", "narrow", "s"),
    "shallow": ("fewer blocks", "shallow", "D"),
    "small": ("narrower throughout", "small", "^"),
}


def speed_by_share(table: pd.DataFrame) -> Figure:
    """How many times as fast as dense, against the share of weights removed; break-even marked.

    Args:
        table: DataFrame with removed_share, kind (of `KINDS`), use, and `times as fast`.
    """
    uses = table.use.unique()
    figure, panels = plt.subplots(
        1, len(uses), sharey=True, squeeze=False, figsize=(1.4 + 4.6 * len(uses), 4.6)
    )
    for axes, use in zip(panels[0], uses, strict=True):
        for kind, rows in table[table.use == use].groupby("kind", sort=False):
            label, recipe, marker = KINDS[kind]
            colour = METHODS[recipe][1]
            x, y = rows.removed_share.to_numpy(), rows["times as fast"].to_numpy()
            axes.plot(x, y, color=colour, marker=marker, label=label)
            if y[0] < 1 < y[-1]:  # share and log speed, interpolated where the line is crossed
                even = np.interp(0, np.log(y), x)
                # the name stays in the axes
                place, side = ((8, -16), "left") if even < 0.6 else ((-6, 6), "right")
                axes.annotate(
                    f"breaks even at {100 * even:.0f} %", (even, 1), place, color=colour, ha=side,
                    textcoords="offset points", fontsize=9.5,
                )  # fmt: skip
        axes.axhline(1, color="#000000", linewidth=1.2, linestyle=(0, (6, 3)))
        log_axes(
            axes, percent=True, xlabel="share of the block weights gone", title=use.capitalize()
        )
    panels[0, 0].set_ylabel("times as fast as dense (dashed)")
    panels[0, 0].legend(loc="upper left")
    return figure
