"""How far pruned models are from the dense one: a figure of divergence and changed answers."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunegpt_utils.report.figure_files import INK, left_out, legend, log_axes, percent_axis
from prunegpt_utils.report.methods import METHODS
from prunegpt_utils.report.plots import SPARSITY

_RECIPES = ("one-shot", "original", "gradual", "gradual-distilled")
_TO_WRONG, _TO_RIGHT = "flips_to_wrong", "flips_to_right"


def fidelity_by_sparsity(table: pd.DataFrame) -> Figure | None:
    """Divergence (log) and changed answers against sparsity, a line a method, means over seeds.

    Each run is compared with the dense run that its record names, on the validation text. A changed
    answer is a token whose first choice was right in one of the two models and wrong in the other.
    Level lines are what two dense models of different seeds have, where a control was compared.

    Args:
        table: of `frames.frame`.
    """
    rows = _measured(table)
    floor = rows[rows.base_recipe == "control"][["kl", _TO_WRONG, _TO_RIGHT]].mean()
    rows = rows[(rows.requested > 0) & rows.recipe.isin(_RECIPES)]
    if rows.empty:
        return left_out("fidelity against sparsity", "no pruned model is compared with a dense one")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.6), layout="constrained")
    for recipe in [name for name in _RECIPES if name in set(rows.recipe)]:
        mine = rows[rows.recipe == recipe].groupby("requested")[["kl", _TO_WRONG, _TO_RIGHT]].mean()
        label, colour, marker = METHODS[recipe]
        left.plot(mine.kl, marker=marker, color=colour, label=label)
        right.plot(mine[_TO_WRONG], marker=marker, color=colour)
        right.plot(mine[_TO_RIGHT], marker=marker, color=colour, ls=":", markerfacecolor="white")
    log_axes(
        left, percent=True, xlim=(0, 1), title="Divergence", xlabel=SPARSITY,
        ylabel="KL from the dense model, nats a token",
    )  # fmt: skip
    right.set(xlim=(0, 1), title="Changed answers", xlabel=SPARSITY, ylabel="share of tokens")
    percent_axis(right.xaxis)
    percent_axis(right.yaxis)
    if np.isfinite(floor.kl):
        for axes, level, dashes in (
            (left, floor.kl, "--"), (right, floor[_TO_WRONG], "--"), (right, floor[_TO_RIGHT], ":")
        ):  # fmt: skip
            axes.axhline(level, color=INK, linestyle=dashes, lw=1.2, zorder=1)
        words, box = "two dense models of different seeds", {"fc": "white", "ec": "none", "pad": 1}
        left.text(0.01, floor.kl * 1.06, words, fontsize=9.5, bbox=box)
    right.set_ylim(0, 1.25 * right.get_ylim()[1])  # room for the legend
    legend(left, fontsize=9.5, loc="upper left", bbox_to_anchor=(0.0, 0.97))
    kinds = {"-": "right in the dense model, wrong here", ":": "wrong there, right here"}
    handles = [Line2D([], [], color=INK, ls=dashes, label=name) for dashes, name in kinds.items()]
    right.legend(handles=handles, fontsize=9.5, loc="upper left", frameon=False)
    return figure


def _measured(table):
    """Rows whose records hold fidelity, with its measures as columns."""
    rows = table[table.fidelity.map(bool).astype(bool)]
    names = ["kl", _TO_WRONG, _TO_RIGHT]
    return rows.join(pd.DataFrame(list(rows.fidelity), index=rows.index, columns=names))
