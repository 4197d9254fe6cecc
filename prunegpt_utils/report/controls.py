"""Fair controls: a rate for each arm, teacher and rate told apart, small dense models."""

import contextlib
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import forgetting, tables
from prunegpt_utils.report.best_dense import GROUP, chosen_on_validation
from prunegpt_utils.report.frames import PRETRAINED_SMALL, costs, frame
from prunegpt_utils.report.methods import order, style_of
from prunegpt_utils.report.statistics import half_width
from prunegpt_utils.runs import records, study_files
from prunegpt_utils.runs.costs import flops_along_chain
from prunegpt_utils.runs.expansion import variant_name

_FREE = ("lr", "steps")  # axes that do not make another arm
# sparsity -> (recipe without, recipe with a teacher)
_PAIRS = {
    0.0: ("control", "dense-distilled"),
    0.5: ("gradual", "gradual-distilled"),
    0.9: ("gradual", "gradual-distilled"),
}


def pretrained_for(study: str) -> list[dict]:
    """Published records of models pretrained to stand beside a study's, and of these pretrainings.

    They are of the studies that the file of `study` lists as `pretrained`, small from the start or
    sparse from the start; the models of `study` itself are all cut out of one large one.
    """
    others = study_files.load_or_empty(study).get("pretrained", [])
    found = [record for other in others for record in records.published(other)]
    return [r for r in found if r["notebook"] == "00_pretraining" or "model" in r["axes"]]


def answer(study: str, found: list[dict], table: pd.DataFrame | None = None) -> str:
    """A study's answer, whatever kind of study it is; '' if it has none.

    Args:
        found: records of the study.  table: of `frames.frame`, of these; None makes it.
    """
    table = answering(study, found, frame(found) if table is None else table)
    return tables.answer(table) or forgetting.answer(found)


def answering(study: str, found: list[dict], table: pd.DataFrame) -> pd.DataFrame:
    """The table from which a study's answer is read: with the models `pretrained_for` it, if any.

    Args:
        found: records of the study.  table: of `frames.frame`, of these.
    """
    beside = pretrained_for(study)
    return frame([*found, *beside]) if beside else table


def sweep(table: pd.DataFrame) -> pd.DataFrame:
    """The runs of the learning-rate sweep: equally long, changed in their rate alone.

    Args:
        table: of `frames.frame`.

    Returns:
        DataFrame: its rows of the number of steps that most of these runs have, with arm, such as
        `gradual + teacher, 90 %`.
    """
    arms = [(recipe, share) for share, recipes in _PAIRS.items() for recipe in recipes]
    asked = pd.Series(zip(table.base_recipe, table.requested, strict=True), table.index, object)
    plain = table["axes"].map(lambda axes: axes.keys() <= set(_FREE)).astype(bool)
    rows = table[asked.isin(arms) & plain]
    rows = rows[rows.steps.isin(rows.steps.mode().iloc[:1])]
    return rows.assign(arm=[_arm(*of) for of in rows[["base_recipe", "requested"]].values])


def _arm(base_recipe, share):
    label = style_of(base_recipe, {})[0].split(":")[0]
    return f"{label}, {100 * share:g} %" if share else label


def usual_length(table: pd.DataFrame) -> int:
    """Steps that most trained runs have, those of the run they went on from included; 0 if none."""
    totals = table.total[table.steps > 0].mode()
    return int(totals.iloc[-1]) if len(totals) else 0


def square(rows: pd.DataFrame, sparsity: float = 0.0) -> pd.DataFrame:
    """Test perplexity with and without a teacher at a low and at a high learning rate.

    Of the rates at which both were trained at most seeds, the lowest and the highest.

    Args:
        rows: of `sweep`.  sparsity: 0, 0.5 or 0.9.

    Returns:
        DataFrame: a row a seed that has all four; columns (learning rate, arm). Without rows and
        columns if there are no two such rates.
    """
    mine = rows[(rows.requested == sparsity) & rows.base_recipe.isin(_PAIRS[sparsity])]
    wide = mine.pivot_table(index="seed", columns=["lr", "base_recipe"], values="test")
    both = {rate: wide[rate].dropna() for rate in dict.fromkeys(rate for rate, _ in wide)}
    seeds = {rate: len(each) for rate, each in both.items() if each.shape[1] == 2}
    rates = [rate for rate, count in seeds.items() if count == max(seeds.values())]
    if len(rates) < 2:
        return pd.DataFrame()
    ends = [(rate, recipe) for rate in (min(rates), max(rates)) for recipe in _PAIRS[sparsity]]
    found = wide[ends].dropna()
    names = [(rate, _arm(recipe, sparsity)) for rate, recipe in ends]
    return found.set_axis(pd.MultiIndex.from_tuples(names, names=["learning rate", "arm"]), axis=1)


def effects(found: pd.DataFrame) -> pd.DataFrame:
    """What the teacher and what the rate changes, each while the other is held.

    Args:
        found: of `square`.

    Returns:
        DataFrame: a row a comparison; mean (change of perplexity in percent, of paired seeds),
        half_width (of its 95 % interval over seeds) and seeds.
    """
    if found.empty:
        return pd.DataFrame(columns=["mean", "half_width", "seeds"])
    low_plain, low_taught, high_plain, high_taught = (found[name] for name in found)
    low, high = found.columns.levels[0]
    changes = {
        f"a teacher, at the rate {low:.2g}": low_taught / low_plain,
        f"a teacher, at the rate {high:.2g}": high_taught / high_plain,
        f"the rate {high:.2g} for {low:.2g}, without a teacher": high_plain / low_plain,
        f"the rate {high:.2g} for {low:.2g}, with a teacher": high_taught / low_taught,
    }
    percent = pd.DataFrame(changes).sub(1).mul(100)
    return percent.agg(["mean", half_width]).T.assign(seeds=len(percent))


def compared(
    found: Sequence[dict], total: int | None = None, flops: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """`frames.costs` of each recipe at the learning rate that validation chose for it.

    Args:
        found: records; where one of notebook 04 is among them, with what it says of time.
        total: steps of the runs that are compared, those of the run they went on from included;
            None compares all, each number of steps by itself.
        flops: see `frames.costs`.
    """
    table = frame(list(found))
    trained = table[(table.total == total) if total else (table.steps > 0)]
    trained = trained.assign(variant=list(map(_variant, trained.base_recipe, trained["axes"])))
    best = chosen_on_validation(trained, ["variant", "size", "total", *GROUP[1:]])
    timed = [record for record in found if record["notebook"] == "04_size_and_speed"]
    parts = [costs([_without_rate(r) for r in found if r["run"] in set(runs.run)] + timed, flops)
             for _, runs in best.groupby(["total", "size"])]  # fmt: skip
    rows = pd.concat(parts, ignore_index=True) if parts else costs([])
    places = rows.base_recipe.map(lambda name: order(name)[0])
    return rows.loc[places.sort_values(kind="stable").index].reset_index(drop=True)


def whole_cost(found: Sequence[dict], resolve: Callable) -> dict[str, int]:
    """{run: operations of its training and of all that it stands on, its teacher's included}.

    Without those runs of which a record along the chain is missing, or does not say.

    Args:
        resolve: see `runs.costs.flops_along_chain`.
    """
    by_name, costs_of = {record["run"]: record for record in found}, {}
    for run in by_name:
        with contextlib.suppress(ParameterError):
            parts = flops_along_chain(run, by_name, resolve).values()
            costs_of[run] = sum(sum(each.values()) for each in parts)
    return costs_of


def _variant(base_recipe, axes):
    return variant_name(base_recipe, {k: v for k, v in axes.items() if k not in _FREE})


def _without_rate(record):
    drop = (*_FREE, "model") if record["base_recipe"] in PRETRAINED_SMALL else _FREE
    axes = {key: value for key, value in record["axes"].items() if key not in drop}
    return record | {"axes": axes, "recipe": variant_name(record["base_recipe"], axes)}


def use_this_if(rows: pd.DataFrame) -> pd.DataFrame:
    """What the records would have a reader use: a row a need that some run meets.

    Validation chooses, and the test text is reported.

    Args:
        rows: of `compared`, of one number of steps.

    Returns:
        DataFrame: index the need; use, test perplexity, its half_width over seeds, seeds,
        x best dense (test), non-zero block weights and megabytes (16 bit) as shares of the dense
        model's.
    """
    plain, taught = rows.zeros == 0, rows.base_recipe.str.endswith("-distilled")
    whole = rows[plain & (rows.weights == rows.weights.max())]
    if whole.empty:
        return pd.DataFrame(columns=["use"])
    dense = whole.loc[whole.perplexity.idxmin()]
    size, kept = rows.bytes16 / dense.bytes16, rows.weights / dense.weights
    needs = {
        "the best text, whatever the size": rows.weights > 0,
        "the same, and there is no teacher": ~taught,
        "at most half of the bytes": size <= 1 / 2,
        "at most half of the bytes, and dense matrices": plain & (size <= 1 / 2),
        "at most a third of the bytes": size <= 1 / 3,
        "at most half of the block weights, and dense matrices": plain & (kept <= 1 / 2),
        "at most half of the block weights": kept <= 0.501,
        "at most a tenth of the block weights": kept <= 0.101,
    }  # fmt: skip
    found = {n: rows.loc[rows[met].perplexity.idxmin()] for n, met in needs.items() if met.any()}
    return pd.DataFrame(
        {need: {
            "use": f"{row.label}, {100 * row.sparsity:.0f} %" if row.zeros else row.label,
            "test": row.test, "half_width": row.test_half_width, "seeds": row.seeds,
            "x best dense": row.test / dense.test,
            "weights": kept[row.name], "bytes": size[row.name],
        } for need, row in found.items()}
    ).T.rename_axis("you need")  # fmt: skip
