"""What a run is compared with: the best dense model of as many steps, chosen on validation."""

import functools
import math

import numpy as np
import pandas as pd

from prunegpt_utils.protocols import exp
from prunegpt_utils.report.methods import method_label
from prunegpt_utils.report.statistics import half_width

# runs of a group differ by their seeds alone
GROUP = ["recipe", "requested", "neurons", "heads", "blocks"]
BY_CHANCE = 0.01  # share of zeros below which nothing was pruned


def with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with what each run is compared with, and the ratios of perplexities.

    The candidates are the trained runs of the same base model and number of steps, those of the
    run they went on from included, from which nothing was removed, all seeds of a recipe together;
    the best is chosen as by `chosen_on_validation`. A study whose fine-tuned models train on for
    one number of steps has one best dense model, that of all its runs of as many steps or fewer. A
    ratio is to the run of the same seed, NaN if there is none.

    Args:
        table: rows of `frames.frame`, with model (name of the base model), size (its weights that
            may be pruned), total (steps) and init_from.

    Returns:
        DataFrame with budget (total steps), dense (recipe of the best dense model), dense_run (of
        the same seed), ratio and test_ratio to it, and control_ratio and control_test_ratio to the
        best of the candidates that have no teacher, the dense control; text_ratios, {name: ratio
        to the best dense model} of further texts.
    """
    candidates = _candidates(table)
    table = table.assign(budget=_budgets(table, candidates))
    controls = candidates[candidates.base_recipe == "control"]
    for kind, found in (("", candidates), ("control_", controls)):
        best = _best(found).rename(columns={"recipe": "dense", "total": "budget"})
        runs = found.rename(columns={"recipe": "dense", "total": "budget", "run": "dense_run"})
        runs = runs[["model", "budget", "dense", "seed", "dense_run", "perplexity", "test"]]
        keys = table[["model", "budget", "seed"]]
        mine = keys.merge(best, on=["model", "budget"], how="left").merge(
            runs, on=["model", "budget", "dense", "seed"], how="left", suffixes=("", "_dense")
        )
        mine.index = table.index
        if not kind:
            table = table.assign(dense=mine.dense, dense_run=mine.dense_run)
        ratios = {"ratio": table.perplexity / mine.perplexity, "test_ratio": table.test / mine.test}
        table = table.assign(**{kind + name: values for name, values in ratios.items()})
    # by text, tokens and window too: under one name there can be others
    scored = [
        {(name, settings[name]): each for name, each in texts.items() if name in settings}
        for texts, settings in table[["texts", "text_settings"]].values
    ]
    of = dict(zip(table.run, scored, strict=True))
    pairs = [(mine, of.get(dense, {})) for mine, dense in zip(scored, table.dense_run, strict=True)]
    over = [{key[0]: mine[key] / of[key] for key in mine.keys() & of.keys()} for mine, of in pairs]
    return table.assign(text_ratios=pd.Series(over, index=table.index, dtype=object))


def _candidates(table):
    """Trained runs of a whole base model: no zeros, no neurons, heads or layers gone."""
    largest = table.groupby("model")["size"].transform("max")
    asked = (table[GROUP[1:]] == 0).all(axis=1) & (table.sparsity < BY_CHANCE)
    return table[asked & (table.steps > 0) & (table["size"] == largest)]


def _budgets(table, candidates):
    """Number of steps of the dense models that a run is compared with."""
    further = candidates[candidates.init_from != ""]
    known = (further if len(further) else candidates).groupby("model").total.unique()
    only = {model: steps[0] for model, steps in known.items() if len(steps) == 1}
    found = table.model.map(only)
    return table.total.where(~(table.total <= found), found).astype(table.total.dtype)


def _best(candidates):
    """The best recipe, a row a base model and number of steps."""
    by = ["model", "total"]
    return chosen_on_validation(candidates, by)[[*by, "recipe"]].drop_duplicates()


def chosen_on_validation(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Of each group of rows the runs, all seeds, of the recipe with the lowest validation loss.

    Recipes of fewer seeds than another one of their group are not chosen: one lucky seed would
    stand against the mean of several.

    Args:
        table: of `frames.frame`.  by: columns that make the groups.
    """
    losses = table.assign(nll=np.log(table.perplexity.astype(float)))
    groups = losses.groupby([*by, "recipe"], sort=False, dropna=False)
    means = groups.agg(nll=("nll", "mean"), seeds=("seed", "nunique")).reset_index()
    means = means.sort_values(["seeds", "nll"], ascending=[False, True], kind="stable")
    best = means.drop_duplicates(by)
    return table.merge(best[[*by, "recipe"]], on=[*by, "recipe"])


def small_models(table: pd.DataFrame) -> pd.DataFrame:
    """Trained dense models with fewer weights: cut down to whole parts, or small from the start.

    Those that were trained for as long as the best dense model that they are held against.

    Args:
        table: of `frames.frame`, of which the rows are; `recipe` says here how much is gone, too.
    """
    largest = table.groupby("model")["size"].transform("max")
    asked = (table[GROUP[2:]] > 0).any(axis=1) | (table["size"] < largest)
    small = table[asked & (table.requested == 0) & (table.steps > 0) & table.test_ratio.notna()]
    small = small[small.total == small.budget]
    sizes = small[GROUP[2:]].astype(str).agg(" ".join, axis=1) if len(small) else ""
    return small.assign(recipe=small.recipe + " " + sizes)


def intervals(table: pd.DataFrame, split: str = "test") -> dict[tuple, tuple[float, float]]:
    """95 % intervals of the ratio to the best dense model: what other text and seeds change.

    Two errors, each with the half-width of its own 95 % interval, in nats: that of the text, over
    its windows (the difference of two models in a window, averaged over the seeds, see
    `evaluation.paired_window_difference`), and that of the seeds, by Student's t, of which one seed
    says nothing. Taken for independent, their squares add up.

    Args:
        table: of `frames.frame`.  split: of the text, test or validation.

    Returns:
        dict: {values of `GROUP`: (low, high)}, ratios of perplexities, of the groups whose records
        all hold the losses of each window, as those that they are compared with; a dense model has
        none to itself.
    """
    windows, found = table.set_index("run").windows, {}
    known = table[table.dense_run.notna() & (table.run != table.dense_run)]
    for group, runs in known.groupby(GROUP, sort=False):
        pairs = [
            (windows[run].get(split, []), windows[dense].get(split, []))
            for run, dense in runs[["run", "dense_run"]].values
        ]
        tokens, window = runs[[f"{split}_tokens", "window"]].iloc[0]
        counts = {len(one) for pair in pairs for one in pair}
        if counts == {-(-tokens // window)} and tokens >= 2 * window:
            ours, theirs = map(tuple, np.mean(pairs, axis=0))
            text = _over_text(ours, theirs, tokens, window)
            ratios = (runs.test_ratio if split == "test" else runs.ratio).astype(float)
            seeds = half_width(np.log(ratios)) if len(runs) > 1 else 0.0
            apart = (math.hypot(text[end] - text["mean"], seeds) for end in ("low", "high"))
            low, high = (text["mean"] + side for side in (-next(apart), next(apart)))
            found[group] = exp(low), exp(high)
    return found


@functools.lru_cache(maxsize=1024)  # one page asks for the same several times
def _over_text(ours, theirs, tokens, window):
    """Mean difference of losses by window, and its 95 % interval, nats."""
    from prunegpt_utils.evaluation import paired_window_difference  # imports torch

    return paired_window_difference(ours, theirs, tokens, window)


def told_apart(table: pd.DataFrame, split: str = "test") -> float:
    """Difference of losses, nats, that a text can tell: half of a usual paired interval.

    The median over the groups of `intervals`; of records without losses by window, that of their
    paired intervals on the validation text, scaled by the root of the ratio of the numbers of
    tokens, as the error of a mean falls with the root of their number. NaN without either.
    """
    found = intervals(table, split).values()
    if found:
        return float(np.median([math.log(high / low) / 2 for low, high in found]))
    scale = (table.validation_tokens / table[f"{split}_tokens"]) ** 0.5
    return float((table.paired_half * scale).median())


def kind(table: pd.DataFrame) -> str:
    """What the models that runs are compared with are called: a control where nothing else is."""
    tried = _candidates(table)
    best = tried[tried.run.isin(table.dense_run)]
    beside = tried[tried.total.isin(best.total)]
    alone = set(best.base_recipe) == {"control"} and beside.recipe.nunique() == 1
    return "dense control" if alone else "best dense model tried"


def names(table: pd.DataFrame) -> list[str]:
    """Which model is the best dense one: a line a base model and number of steps.

    A line says so where nothing but the plain control is known, where the best model's kind was
    trained at one learning rate only, where a dense model of fewer steps is better, and where one
    of fewer seeds was better at these by more than the text tells apart.
    """
    candidates, lines, least = _candidates(table), [], told_apart(table)
    rest = table[~table.run.isin(candidates.run)]
    compared = set(rest[["model", "budget"]].itertuples(index=False, name=None))
    means = candidates.groupby(["model", "total", "recipe"], sort=False).perplexity.mean()
    for model, total, recipe in _best(candidates).sort_values(["model", "total"]).values:
        if (model, total) in compared or rest.empty:
            others = candidates[(candidates.model == model) & (candidates.total == total)]
            row = others[others.recipe == recipe].iloc[0]
            label = method_label(
                row.base_recipe, {k: v for k, v in row["axes"].items() if k != "steps"}
            )
            alone = row.base_recipe == "control" and others.recipe.nunique() == 1
            fewer = means[model][means[model].index.get_level_values("total") < total]
            beaten = len(fewer) and fewer.min() < means[model, total, recipe]
            unswept = others[others.base_recipe == row.base_recipe].lr.nunique() < 2
            losses = np.log(others.set_index(["recipe", "seed"]).perplexity.astype(float))
            apart = losses - losses[recipe].reindex(losses.index, level="seed")
            better = (apart.groupby("recipe").mean() < -least).any()
            remarks = [_ALONE] if alone else [_UNSWEPT] * unswept
            remarks += [_BEATEN] * bool(beaten) + [_FEWER] * bool(better)
            place = f"{model}, " if candidates.model.nunique() > 1 else ""
            name = label.replace(": fine-tuned for as long", "")
            lines.append(f"{name} ({'; '.join([f'{place}{row.steps:,} steps', *remarks])})")
    return lines


_ALONE = "in this study no other dense model was trained for as many"
_UNSWEPT = "its learning rate was not swept, so that a better one may exist"
_FEWER = "another did better at the seeds that it has, which are fewer"
_BEATEN = "a dense model of fewer steps is better"
