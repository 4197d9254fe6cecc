"""Models cut at once and not retrained, on several texts: rows, claims and a figure."""

import math
from collections.abc import Sequence
from itertools import cycle, product

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.protocols import exp
from prunegpt_utils.report.figure_files import INK, log_axes
from prunegpt_utils.report.methods import CRITERIA, TEXT_LABELS
from prunegpt_utils.report.statistics import half_width, with_interval

OWN = "validation"  # how the text of a run itself is called here; others go by their names
_TEXTLESS = ("magnitude",)  # criteria that look at no text, and draw nothing
_COLUMNS = ("model", "criterion", "scope", "sparsity", "seed", "text", "perplexity", "nats")


def cuts(records: Sequence[dict]) -> pd.DataFrame:
    """One row a cut and text, of records with a one-shot curve.

    Returns:
        DataFrame with model, criterion, scope, sparsity, seed, text (`OWN` or a name of
        `also_score`), perplexity, and nats: by how much the mean loss of a token is above that of
        the dense model that was cut, so that exp(nats) is the ratio of their perplexities.

    Raises:
        ParameterError: one cut of one seed has two outcomes, so that they are not of one model.
    """
    rows = []
    for record in records:
        dense = {OWN: record["metrics"]["validation"]}
        dense |= {name: each["metrics"] for name, each in (record.get("also_scored") or {}).items()}
        for point in record.get("one_shot_curve") or []:
            arm = record["model"]["name"], point["criterion"], point["scope"], point["sparsity"]
            for text, found in ({OWN: point["validation"]} | (point.get("also") or {})).items():
                nats = found["nll"] - dense[text]["nll"]
                rows.append((*arm, record["seed"], text, float(found["perplexity"]), nats))
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).drop_duplicates(ignore_index=True)
    twice = table[table.duplicated(list(_COLUMNS[:-2]))]
    for model, criterion, scope, sparsity, seed in twice[list(_COLUMNS[:5])].values:
        cut = f"{criterion}, {scope}, {sparsity:g}, seed {seed}"
        raise ParameterError("model", model, f"was cut in one way with two outcomes: {cut}")
    return table


def dense_rows(records: Sequence[dict]) -> pd.DataFrame:
    """What the models were before the cut: perplexity and scored tokens by model, seed and text.

    A text that a run names and could not have is a row without numbers, which says what it needs.
    """
    rows = []
    for record in records:
        model, seed = record["model"]["name"], record["seed"]
        found = {OWN: {"metrics": record["metrics"]["validation"]}} | (
            record.get("also_scored") or {}
        )
        for text in dict.fromkeys([*found, *record["parameters"].get("also_score", "").split()]):
            metrics = found.get(text, {}).get("metrics")
            value = float(metrics["perplexity"]) if metrics else math.nan
            rows.append((model, seed, text, value, metrics["tokens"] if metrics else 0,
                         "" if metrics else f"needs {text}"))  # fmt: skip
    columns = ["model", "seed", "text", "perplexity", "tokens", "missing"]
    return pd.DataFrame(rows, columns=columns)


def at_level(rows: pd.DataFrame, level: float | str) -> pd.DataFrame:
    """Rows of `cuts` at one sparsity, or at one pattern such as 2:4."""
    patterned = rows.scope.str.contains(":")
    if isinstance(level, str):
        return rows[rows.scope == level]
    return rows[~patterned & (rows.sparsity - level).abs().lt(1e-9)]


def ratio_table(rows: pd.DataFrame, levels: Sequence[float | str]) -> pd.DataFrame:
    """Ratio of perplexities, after the cut to dense: mean over seeds, ± half of its 95 % interval.

    Returns:
        DataFrame of texts: a row a criterion and scope (the pattern's column has none of its own),
        a column a level, model and text.
    """
    parts = {}
    for level in levels:
        found = at_level(rows, level).assign(ratio=lambda each: each.nats.map(exp))
        if isinstance(level, str):
            found = found.assign(scope="")
        name = level if isinstance(level, str) else f"{100 * level:.0f} %"
        for (model, text), group in found.groupby(["model", "text"], sort=False):
            by = group.groupby(["criterion", "scope"]).ratio.agg(["mean", half_width])
            parts[name, model, TEXT_LABELS.get(text, text)] = by.apply(_ratio, axis=1)
    table = pd.DataFrame(parts).fillna("")
    places = {criterion: place for place, criterion in enumerate(CRITERIA)}
    return table.sort_index(key=lambda index: index.map(lambda k: places.get(k, k)), level=0)


def _ratio(row):
    low = f" ± {row.half_width:.2g}" if row.half_width == row.half_width else ""
    return f"{row['mean']:.3g}{low}"


def gaps(
    rows: pd.DataFrame, pairs: Sequence[tuple[str, str]], levels: Sequence[float | str]
) -> pd.DataFrame:
    """By how much one criterion loses less than another, for each level, model and text.

    Args:
        rows: of `cuts`.  levels: see `at_level`.
        pairs: (better, worse), each `criterion` or `criterion, scope`; a pattern has no scope.

    Returns:
        DataFrame of texts: `statistics.with_interval` of the nats a token by which the second is
        above the first, over calibration seeds; a row a pair and level, a column a model and text.
    """
    found = {}
    for pair, level in product(pairs, levels):
        name = level if isinstance(level, str) else f"{100 * level:.0f} %"
        row = found[" before ".join(map(_called, pair)), name] = {}
        for (model, text), group in at_level(rows, level).groupby(["model", "text"], sort=False):
            row[model, TEXT_LABELS.get(text, text)] = with_interval(_gaps(group, *pair))
    places = pd.MultiIndex.from_tuples(found, names=["pair", "level"])
    table = pd.DataFrame(found.values(), index=places).fillna("")
    columns = pd.MultiIndex.from_tuples(table.columns, names=["model", "text"])
    return table.set_axis(columns, axis=1)[table.ne("").any(axis=1)]


def _called(arm):
    criterion, _, scope = arm.partition(", ")
    return CRITERIA.get(criterion, (criterion,))[0] + (f" ({scope})" if scope else "")


def _gaps(rows, better, worse):
    """Of each seed, nats of the worse less those of the better.

    Those that both have; what looks at no text has one seed, which stands for all of them.
    """
    arms, alone = [], []
    for name in (better, worse):
        criterion, _, scope = name.partition(", ")
        arm = rows[rows.criterion == criterion]
        arm = arm[arm.scope == scope] if scope and not arm.scope.str.contains(":").all() else arm
        arms.append(arm.set_index("seed").nats)
        alone.append(criterion in _TEXTLESS and len(arm) == 1)
    first, second = arms
    if alone[0]:
        first = first.reindex(second.index, method="nearest")
    elif alone[1]:
        second = second.reindex(first.index, method="nearest")
    apart = (second - first).dropna()
    return apart if apart.any() else apart[:0]  # a pattern ranks alike in every scope


def ratio_curves(rows: pd.DataFrame, text: str, title: str) -> Figure:
    """Perplexity over that of the dense model (log) against sparsity, a line a criterion and model.

    Args:
        rows: of `cuts`; the second of several models is dashed.  text: whose rows are drawn; of a
            model that lacks it, those of its own text.
    """
    figure, axes = plt.subplots(figsize=(7.6, 4.8))
    kinds, models = {}, dict(zip(rows.model.unique(), cycle(("-", "--", ":", "-.")), strict=False))
    for model, dashes in models.items():
        mine = rows[(rows.model == model) & ~rows.scope.str.contains(":")]
        mine = mine[mine.text == (text if (mine.text == text).any() else OWN)]
        for criterion in dict.fromkeys([*CRITERIA, *mine.criterion]):
            label, colour, marker = CRITERIA.get(criterion, (criterion, "#000000", "P"))
            for scope, group in mine[mine.criterion == criterion].groupby("scope"):
                curve = group.groupby("sparsity").nats.mean().map(exp)
                face = colour if scope == "global" else "white"
                look = {"marker": marker, "color": colour, "markersize": 6.5, "mfc": face}
                over = 2 + (len(curve) == 1)  # a single mark is not hidden by a line
                axes.plot(curve, ls=dashes, label=f"{label}, {scope}, {model}", zorder=over, **look)
                kinds[f"{label}, {scope}"] = Line2D([], [], ls="", **look)
    log_axes(
        axes, percent=True, xlabel="sparsity of the block matrices", title=title,
        ylabel="perplexity, 1 = before the cut",
    )  # fmt: skip
    kinds |= {str(model): Line2D([], [], color=INK, ls=dashes) for model, dashes in models.items()}
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    axes.legend(kinds.values(), kinds.keys(), fontsize=8.5, **place)
    return figure
