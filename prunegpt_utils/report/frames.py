"""Records to data frames: one row a run, a point of a curve, or a mean over seeds."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from prunegpt_utils.report.methods import method_label, order
from prunegpt_utils.runs.expansion import variant_name

# notebooks whose records are not about how good one pruned model is
_OTHER_NOTEBOOKS = ("00_pretraining", "04_size_and_speed", "06_criteria", "12_one_shot")
_COLUMNS = (
    "run", "recipe", "base_recipe", "axes", "label", "seed", "sparsity", "scope", "criterion",
    "model_sparsity", "perplexity", "test", "tokens", "seconds",
)  # fmt: skip


def frame(
    records: list[dict], published: dict | None = None, missing: dict | None = None,
    specs: Mapping | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One row a record of a model, of one study, in the order of the tables.

    Args:
        published: {recipe: perplexity} that others reported, see `runs.expansion.context`.
        missing: {recipe: why a row is not there, or not of all runs}.
        specs: {recipe: (base recipe, axes)} of those that are missing.

    Returns:
        DataFrame with run, recipe, base_recipe, axes, label (see `methods`), seed, sparsity
        (measured, of the block matrices, rounded to a tenth of a percent; where whole neurons were
        removed, the share of weights removed), scope, criterion, model_sparsity, perplexity and
        test (of the validation and the test split), tokens, seconds, ratio and test_ratio (to the
        dense control of the same seed). What is published and missing travels along as attributes.
    """
    rows = [_row(record) for record in records if record["notebook"] not in _OTHER_NOTEBOOKS]
    table = pd.DataFrame(rows, columns=_COLUMNS)
    control = _of_its_control(table)
    table["ratio"] = table.perplexity / control.perplexity
    table["test_ratio"] = table.test / control.test
    table["order"] = [order(*of) for of in zip(table.base_recipe, table["axes"], strict=True)]
    table["name"] = table.recipe.str.replace(r"\d+", lambda found: found[0].zfill(9), regex=True)
    table = table.sort_values(["order", "name", "sparsity", "seed"], ignore_index=True)
    table = table.drop(columns=["order", "name"])
    table.attrs = {"published": published or {}, "missing": missing or {}, "specs": specs or {}}
    return table


def _row(record):
    metrics, p, training = record["metrics"], record["parameters"], record["training"]
    return record | {
        "label": method_label(record["base_recipe"], record["axes"]),
        "sparsity": round(record.get("removed_share", record["sparsity"]["prunable"]), 3),
        "scope": p.get("scope", ""), "criterion": p.get("criterion", ""),
        "model_sparsity": record["sparsity"]["model"],
        "perplexity": float(metrics["validation"]["perplexity"]),
        "test": float(metrics["test"]["perplexity"]),
        "tokens": training["tokens"], "seconds": training["seconds"],
    }  # fmt: skip


def _of_its_control(table):
    """Perplexities of each run's control: of its seed and, if there are several, its length."""
    controls = table[table.base_recipe == "control"].sort_values("recipe")
    equal = ["seed", "tokens"] if controls.recipe.nunique() > 1 else ["seed"]
    levels = controls.drop_duplicates(equal)[[*equal, "perplexity", "test"]]
    return table[equal].merge(levels, on=equal, how="left")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each recipe and sparsity, with the standard deviation and the count."""
    groups = table.groupby(["recipe", "sparsity"], sort=False)
    return groups.agg(
        base_recipe=("base_recipe", "first"), axes=("axes", "first"), label=("label", "first"),
        perplexity=("perplexity", "mean"), spread=("perplexity", "std"), test=("test", "mean"),
        ratio=("ratio", "mean"), test_ratio=("test_ratio", "mean"),
        model_sparsity=("model_sparsity", "mean"),
        tokens=("tokens", "mean"), seconds=("seconds", "mean"), seeds=("seed", list),
        runs=("run", list),
    ).reset_index()  # fmt: skip


def one_shot_curves(records: list[dict]) -> pd.DataFrame:
    """One row a point of the one-shot curves: sparsity, scope, criterion, seed, perplexity."""
    rows = [
        row | {"seed": record["seed"], "perplexity": float(row["validation"]["perplexity"])}
        for record in records for row in record.get("one_shot_curve") or []
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["sparsity", "scope", "criterion", "seed", "perplexity"])


def with_one_shot(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Runs by criterion and level, each beside what the same cut gives without retraining.

    Args:
        table: of `frame`.  curves: of `one_shot_curves`, from the same seeds.

    Returns:
        DataFrame: the rows of pruned runs, in the order of their sparsity and patterns last, with
        level (sparsity in percent, or the pattern), method (criterion, or recipe if it cuts
        gradually) and one_shot (perplexity; NaN if not measured).
    """
    rows = table[table.sparsity > 0].copy()
    patterned = rows.scope.str.contains(":")
    rows = rows.assign(patterned=patterned).sort_values(["patterned", "sparsity"], kind="stable")
    rows["level"] = rows.scope.where(rows.patterned, (100 * rows.sparsity).map("{:.0f} %".format))
    gradual = {"two-four": "gradual", "two-four-distilled": "gradual-distilled"}
    rows["method"] = rows.base_recipe.replace(gradual)
    rows["method"] = rows.method.mask(rows.base_recipe == "retrained", rows.criterion)
    known = curves.assign(sparsity=curves.sparsity.round(2))
    known = known.set_index(["criterion", "scope", "sparsity", "seed"]).perplexity
    known = known[~known.index.duplicated()]
    # to a percent: rows of few weights cannot lose exactly as many as was asked for
    keys = zip(rows.method, rows.scope, rows.sparsity.round(2), rows.seed, strict=True)
    rows["one_shot"] = [known.get(key, math.nan) for key in keys]
    return rows


def by_steps(records: list[dict]) -> pd.DataFrame:
    """Perplexity against the length of training, a row a run with an axis `steps` and none `lr`.

    Returns:
        DataFrame with recipe (without the axis `steps`), sparsity (as asked for), steps, seed,
        perplexity, and base_recipe, axes and label, also without it.
    """
    rows = []
    for record in records:
        base, axes = record["base_recipe"], dict(record["axes"])
        if "steps" in axes and "lr" not in axes:
            steps, perplexity = axes.pop("steps"), record["metrics"]["validation"]["perplexity"]
            rows.append((
                variant_name(base, axes), record["sparsity"]["requested"], steps, record["seed"],
                float(perplexity), base, axes, method_label(base, axes),
            ))  # fmt: skip
    columns = ["recipe", "sparsity", "steps", "seed", "perplexity", "base_recipe", "axes", "label"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:4], ignore_index=True)


def stored_bytes(record: dict) -> int:
    """Bytes of a model whose zeros are not stored, from the counts of its record.

    float32 values that are not zero, and one bit for each weight of a pruned matrix, which says
    whether it is one: 4 (N - z) + M / 8, with N parameters, M of them prunable, z of those zero.
    A model without zeros needs no bits: 4 N.
    """
    model, zeros = record["model"], record["sparsity"]["prunable"] * record["model"]["prunable"]
    mask = math.ceil(model["prunable"] / 8) if zeros else 0
    return round(4 * (model["parameters"] - zeros)) + mask


def costs(records: list[dict]) -> pd.DataFrame:
    """Perplexity, bytes and time, a row a recipe and sparsity, means over seeds.

    Returns:
        DataFrame with recipe, base_recipe, axes, label, sparsity, perplexity, bytes (see
        `stored_bytes`) and time: that of writing a token, as a fraction of the dense model's, for
        a model of the shape that notebook 04 measured with as large a share of its weights removed
        (interpolated on a logarithmic scale; NaN outside of the measured shares).
    """
    size = {record["run"]: stored_bytes(record) for record in records if "model" in record}
    columns = ["recipe", "base_recipe", "axes", "label", "sparsity", "perplexity", "runs"]
    rows = summary(frame(records))[columns].copy()
    rows["bytes"] = [sum(map(size.get, runs)) / len(runs) for runs in rows.pop("runs")]
    measured = [row for record in records for row in record.get("seconds_by_share", [])]
    narrow = rows.base_recipe.isin(["narrow", "narrow-distilled"])
    kinds = np.where(narrow, "narrow", "sparse")
    rows["time"] = [_time_at(*of, measured) for of in zip(rows.sparsity, kinds, strict=True)]
    return rows


def _time_at(share, kind, measured):
    if share < 0.001:
        return 1.0
    points = sorted(
        (row["removed_share"], math.log(row["seconds_other"] / row["seconds_dense"]))
        for row in measured if (row["kind"], row["use"]) == (kind, "writing")
    )  # fmt: skip
    # A share is what could be reached: neurons come in eights.
    if not points or not points[0][0] - 0.01 <= share <= points[-1][0] + 0.01:
        return math.nan
    return math.exp(np.interp(share, *zip(*points, strict=True)))


def pareto_front(rows: pd.DataFrame, cost: str) -> pd.Series:
    """True where no other row has less in the column `cost` and a lower `perplexity`."""
    best = rows.sort_values([cost, "perplexity"]).perplexity
    return (best < best.cummin().shift(fill_value=math.inf)).reindex(rows.index)
