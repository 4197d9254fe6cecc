"""Records to data frames: one row a run, a point of a curve, or a mean over seeds."""

import json
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from prunegpt_utils.config import peak_lr, training_parameters
from prunegpt_utils.report import best_dense, comparable
from prunegpt_utils.report.methods import method_label, order
from prunegpt_utils.report.statistics import half_width
from prunegpt_utils.runs import study_files
from prunegpt_utils.runs.expansion import resolver, variant_name

# notebooks whose records are not about how good one pruned model is
_OTHER_NOTEBOOKS = ("00_pretraining", "04_size_and_speed", "06_criteria", "13_one_shot")
_COLUMNS = (
    "run", "recipe", "base_recipe", "axes", "label", "seed", "requested", "neurons", "heads",
    "blocks", "sparsity", "scope", "criterion", "model_sparsity", "perplexity", "test", "tokens",
    "seconds", "untaught", "model", "size", "init_from", "steps", "total", "best_step", "lr",
    "validation_tokens", "test_tokens", "paired_half", "window", "windows", "fidelity", "texts",
    "text_settings", "bytes16",
)  # fmt: skip
PRETRAINED_SMALL = ("small", "small-distilled")  # nothing is gone; the axis `model` is the size
# columns whose cells are no numbers or short texts
OBJECTS = ["axes", "untaught", "windows", "fidelity", "texts", "text_settings", "text_ratios"]
# what was asked to go; what went differs a little from seed to seed, and so makes no groups
REQUESTED = best_dense.GROUP[1:]


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
        DataFrame with run, recipe, base_recipe, axes, label (see `methods`), seed, what was asked
        to go (requested, neurons, heads, blocks: fractions of block weights and of these), sparsity
        (measured, of the block matrices, rounded to a tenth of a percent; where whole neurons or
        blocks are gone, the share of their weights), scope, criterion, model_sparsity, perplexity,
        test (of the validation and the test split), tokens, seconds, untaught (for a run with a
        teacher, the name of the same run without one, None if there is none), model (see
        `comparable.base_models`), size (of the base model: its weights that may be pruned),
        init_from, steps, total (with those of the runs it went on from) and best_step (of which the
        checkpoint was kept), lr (the peak learning rate), tokens of both splits, paired_half (half
        of the interval of `nll_gain_over_baseline`, nats), windows ({split: losses by window of
        `window` tokens}), fidelity, texts ({name: perplexity} of further texts, NaN of one that was
        not to be had), text_settings ({name: its hash, scored tokens and window}), bytes16 (see
        `stored_bytes`, 2 bytes a value), and the columns of `best_dense.with_ratios`. What is
        published and missing travels along as attributes.
    """
    found = [record for record in records if record["notebook"] not in _OTHER_NOTEBOOKS]
    table = pd.DataFrame([_row(record) for record in found], columns=_COLUMNS)
    table["untaught"] = pd.Series(_untaught(found), dtype=object)
    table["total"] = table.steps + pd.Series(comparable.steps_before(found), dtype=int)
    table["model"] = pd.Series(comparable.base_models(found, records), dtype=object)
    table = best_dense.with_ratios(table)
    table["order"] = [order(*of) for of in zip(table.base_recipe, table["axes"], strict=True)]
    table["name"] = table.recipe.str.replace(r"\d+", lambda found: found[0].zfill(9), regex=True)
    table = table.sort_values(["order", "name", "requested", "sparsity", "seed"], ignore_index=True)
    table = table.drop(columns=["order", "name"])
    table.attrs = {"published": published or {}, "missing": missing or {}, "specs": specs or {}}
    return table


def _row(record):
    metrics, p, training = record["metrics"], record["parameters"], record["training"]
    gain, steps = record.get("nll_gain_over_baseline") or {}, training["steps"]
    texts = (record.get("also_scored") or {}).items()
    asked = dict.fromkeys(p.get("also_score", "").split(), math.nan)
    return record | {
        "label": method_label(record["base_recipe"], record["axes"]),
        "requested": record["sparsity"].get("requested", record["sparsity"]["prunable"]),
        "neurons": p.get("neuron_sparsity", 0.0), "heads": p.get("head_sparsity", 0.0),
        "blocks": p.get("block_sparsity", 0.0),
        "sparsity": round(_removed(record), 3),
        "scope": p.get("scope", ""), "criterion": p.get("criterion", ""),
        "model_sparsity": record["sparsity"]["model"],
        "perplexity": float(metrics["validation"]["perplexity"]),
        "test": float(metrics["test"]["perplexity"]),
        "tokens": training["tokens"], "seconds": training["seconds"],
        "model": record["model"]["name"], "size": record["model"]["prunable"],
        "init_from": p.get("init_from", ""), "steps": steps,
        "lr": training.get("peak_lr") or (peak_lr(p) if steps and "lr" in p else math.nan),
        "best_step": training.get("best_step"),
        **{f"{split}_tokens": metrics[split]["tokens"] for split in ("validation", "test")},
        "paired_half": (gain["high"] - gain["low"]) / 2 if "high" in gain else math.nan,
        "window": record["protocol"]["block_size"] - 1,
        "windows": record.get("nll_by_window") or {},
        "fidelity": record.get("fidelity"),
        "texts": asked | {name: float(each["metrics"]["perplexity"]) for name, each in texts},
        "text_settings": {name: _text_setting(each, p) for name, each in texts},
        "bytes16": stored_bytes(record, 2),
    }  # fmt: skip


def _text_setting(scored, p):
    return scored["sha256"], scored["metrics"]["tokens"], p.get("also_block_size")


def _removed(record):
    """Share of the block weights that are gone: measured, never asked for."""
    share = 0.0 if record["base_recipe"] in PRETRAINED_SMALL else record.get("removed_share")
    return record["sparsity"]["prunable"] if share is None else share


def _untaught(records):
    """For each record the run that differs from it by having no teacher, or None."""
    keys = [json.dumps(training_parameters(r["parameters"]), sort_keys=True) for r in records]
    taught = [r["parameters"].get("alpha", 0) > 0 for r in records]
    alone = {}
    for record, key, has_teacher in zip(records, keys, taught, strict=True):
        if not has_teacher:
            alone.setdefault(key, record["run"])
    return [alone.get(key) if known else None for key, known in zip(keys, taught, strict=True)]


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """What a teacher was worth: a row a run that has one, beside the same run without.

    Returns:
        DataFrame: such rows of `frame`, with `alone`, `alone_test` and `alone_test_ratio`, the
        perplexity, test and test_ratio of the run without a teacher.
    """
    columns = {"perplexity": "alone", "test": "alone_test", "test_ratio": "alone_test_ratio"}
    alone = table[["run", *columns]].rename(columns={"run": "untaught", **columns})
    return table[table.untaught.notna()].merge(alone, on="untaught", how="inner")


def nll_gains(records: list[dict]) -> dict[str, dict]:
    """{run: what its teacher was worth, in nats a token} of one study, as the records say.

    Only where the run to compare with, `baseline`, is the same but for the teacher: records of the
    first release also hold the difference to whatever that parameter named.
    """
    names = {record["run"]: name for record, name in zip(records, _untaught(records), strict=True)}
    recipes = {record["run"]: record["recipe"] for record in records}
    study = next((record["study"] for record in records), "")
    found, resolve = {}, resolver(study_files.load_or_empty(study))
    for record in records:
        if names[record["run"]] and record.get("nll_gain_over_baseline"):
            spec = resolve("baseline", p := record["parameters"])
            named = spec.parameters["recipe"] if spec else p.get("baseline")
            if recipes.get(names[record["run"]]) == named:
                found[record["run"]] = record["nll_gain_over_baseline"]
    return found


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each recipe and what was asked to go, with standard deviation and count.

    `sparsity` is the mean of what was measured, to a tenth of a percent.
    """
    groups = table.groupby(["recipe", *REQUESTED], sort=False)
    means = groups.agg(
        sparsity=("sparsity", "mean"),
        base_recipe=("base_recipe", "first"), axes=("axes", "first"), label=("label", "first"),
        perplexity=("perplexity", "mean"), spread=("perplexity", "std"), test=("test", "mean"),
        test_spread=("test", "std"), ratio=("ratio", "mean"), test_ratio=("test_ratio", "mean"),
        control_ratio=("control_ratio", "mean"), control_test_ratio=("control_test_ratio", "mean"),
        lr=("lr", "first"), steps=("steps", "first"), best_step=("best_step", list),
        fidelity=("fidelity", list), texts=("texts", list), text_ratios=("text_ratios", list),
        tokens=("tokens", "mean"), seconds=("seconds", "mean"), seeds=("seed", list),
        runs=("run", list),
    ).reset_index()  # fmt: skip
    return means.assign(sparsity=means.sparsity.round(3))


def one_shot_curves(records: list[dict]) -> pd.DataFrame:
    """A row a point of the one-shot curves: model, sparsity, scope, criterion, seed, perplexity."""
    rows = [
        row | {"seed": record["seed"], "perplexity": float(row["validation"]["perplexity"]),
               "model": record.get("model", {}).get("name", "")}
        for record in records for row in record.get("one_shot_curve") or []
    ]  # fmt: skip
    columns = ["model", "sparsity", "scope", "criterion", "seed", "perplexity"]
    return pd.DataFrame(rows, columns=columns)


def with_one_shot(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Runs by criterion and level, each beside what the same cut gives without retraining.

    Args:
        table: of `frame`.  curves: of `one_shot_curves`, from the same seeds.

    Returns:
        DataFrame: the rows of pruned runs, in the order of their sparsity and patterns last, with
        level (sparsity asked for in percent, or the pattern), method (criterion, or recipe if it
        cuts gradually or something else was changed), asked (the sparsity) and one_shot
        (perplexity; NaN if not measured).
    """
    rows = table[table.sparsity > 0].copy()
    asked = rows.requested.where(rows.requested > 0, rows.sparsity)
    rows = rows.assign(patterned=rows.scope.astype(str).str.contains(":"), asked=asked)
    rows = rows.sort_values(["patterned", "asked"], kind="stable")
    rows["level"] = [level(*of) for of in zip(rows.scope, rows.asked, strict=True)]
    rows["method"] = [_method(row) for row in rows.to_dict("records")]
    known = curves.assign(sparsity=curves.sparsity.astype(float).round(6))
    known = known.set_index(["model", "criterion", "scope", "sparsity", "seed"]).perplexity
    known = known[~known.index.duplicated()]
    models = rows.model.str.partition(", ")[0] if len(rows) else []  # without the settings
    keys = zip(models, rows.method, rows.scope, rows.asked.round(6), rows.seed, strict=True)
    rows["one_shot"] = [known.get(key, math.nan) for key in keys]
    return rows


def _method(row):
    changed = row["axes"].keys() - {"criterion", "scope"}
    if row["base_recipe"] == "retrained":
        return row["recipe"] if changed else row["criterion"]
    gradual = {"two-four": "gradual", "two-four-distilled": "gradual-distilled"}
    return row["recipe"] if row["axes"] else gradual.get(row["base_recipe"], row["base_recipe"])


def level(scope: str, share: float) -> str:
    """What was asked to go: `90 %`; of a pattern that, with the share if it is only part of it."""
    if ":" not in scope:
        return f"{100 * share:g} %"
    n, m = map(int, scope.split(":"))
    return scope if share == 1 - n / m else f"{scope}, {100 * share:g} %"


def by_steps(records: list[dict]) -> pd.DataFrame:
    """Perplexity against the length of training, a row a run with an axis `steps` and none `lr`.

    Returns:
        DataFrame with recipe (without the axis `steps`), sparsity (as asked for), steps, seed,
        perplexity, base_recipe, axes and label, also without it, and test.
    """
    rows = []
    for record in records:
        base, axes = record["base_recipe"], dict(record["axes"])
        if "steps" in axes and "lr" not in axes:
            steps, perplexity = axes.pop("steps"), record["metrics"]["validation"]["perplexity"]
            rows.append((
                variant_name(base, axes), record["sparsity"]["requested"], steps, record["seed"],
                float(perplexity), base, axes, method_label(base, axes),
                float(record["metrics"]["test"]["perplexity"]),
            ))  # fmt: skip
    keys = ["recipe", "sparsity", "steps", "seed"]
    columns = [*keys, "perplexity", "base_recipe", "axes", "label", "test"]
    return pd.DataFrame(rows, columns=columns).sort_values(keys, ignore_index=True)


def stored_bytes(record: dict, width: int = 4) -> int:
    """Bytes of a model whose zeros are not stored, from the counts of its record.

    Values that are not zero, of `width` bytes each, and one bit for each weight of a pruned matrix,
    which says whether it is one: 4 (N - z) + M / 8 in float32, with N parameters, M of them
    prunable, z of those zero. A model that was not pruned needs no bits: 4 N.
    """
    model, zeros = record["model"], _zeros(record)
    mask = math.ceil(model["prunable"] / 8) if zeros else 0
    return round(width * (model["parameters"] - zeros)) + mask


def _zeros(record):
    """Weights that were pruned; a checkpoint in 4 bits has a few zeros by chance."""
    share = record["sparsity"]["prunable"]
    return share * record["model"]["prunable"] if share >= best_dense.BY_CHANCE else 0


def training_flops(record: dict) -> float:
    """Operations of a run's own training, of student and teacher; NaN where nobody counted."""
    flops = record["training"].get("flops")
    return float(sum(flops.values())) if flops else math.nan


def costs(records: list[dict], flops: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Perplexity, bytes and time, a row a recipe and sparsity, means over seeds.

    Args:
        flops: {run: operations of all that it stands on}, NaN for a run that is not in it; None
            counts its own training alone.

    Returns:
        DataFrame with recipe, base_recipe, axes, label, sparsity, perplexity and test; seeds and
        test_half_width (of the 95 % interval over them); bytes and bytes16 (see `stored_bytes`, of
        4 and of 2 bytes a value), weights (of the blocks, not zero), zeros, removed (the share of
        the large model's block weights that it does without), flops (see `training_flops`) and
        time: that of writing a token, as a fraction of the dense model's, for a model of its kind
        that notebook 04 measured with as large a share removed (interpolated on a logarithmic
        scale; NaN outside of the measured shares).
    """
    columns = ["recipe", "base_recipe", "axes", "label", "sparsity", "perplexity", "test"]
    table = frame(records)
    rows = summary(table)[[*columns, "runs"]].copy()
    counted = {record["run"]: _counts(record) for record in records if "model" in record}
    for run in counted if flops is not None else ():
        counted[run]["flops"] = flops.get(run, math.nan)
    means = [pd.DataFrame([counted[run] for run in runs]).mean() for runs in rows.runs]
    rows = rows.join(pd.DataFrame(means, index=rows.index, columns=list(_COUNTS)))
    tests = table.set_index("run").test
    rows["test_half_width"] = [half_width(tests[runs]) for runs in rows.runs]
    rows["seeds"] = [len(runs) for runs in rows.pop("runs")]
    measured = [row for record in records for row in record.get("seconds_by_share", [])]
    kinds = rows.base_recipe.str.removesuffix("-distilled").where(rows.zeros == 0, "sparse")
    rows["time"] = [_time_at(*of, measured) for of in zip(rows.removed, kinds, strict=True)]
    return rows


_COUNTS = ("bytes", "bytes16", "weights", "zeros", "removed", "flops")


def _counts(record):
    zeros = _zeros(record)
    sizes = stored_bytes(record), stored_bytes(record, 2), record["model"]["prunable"] - zeros
    share = record.get("removed_share")
    removed = record["sparsity"]["prunable"] if share is None else share
    return dict(zip(_COUNTS, (*sizes, zeros, removed, training_flops(record)), strict=True))


def _time_at(share, kind, measured):
    if share < best_dense.BY_CHANCE:
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
