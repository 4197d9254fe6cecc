"""Records to data frames, and data frames to the tables people read."""

import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

# criterion -> (what the reader calls it, colour, marker)
CRITERIA = {
    "random": ("at random", "#777777", "v"),
    "magnitude": ("magnitude", "#E69F00", "s"),
    "first-order": ("first-order", "#CC79A7", "X"),
    "wanda": ("Wanda", "#009E73", "^"),
    "sparsegpt": ("SparseGPT", "#D55E00", "D"),
    "fisher": ("Fisher", "#0072B2", "o"),
}

# recipe -> (what the reader calls it, colour, marker); the order is that of the tables.
METHODS = {
    "zero-shot-xl": ("GPT-2 XL, zero-shot", "#777777", "^"),
    "zero-shot": ("pretrained, zero-shot", "#777777", "o"),
    "dense": ("fine-tuned", "#777777", "s"),
    "control": ("dense control: fine-tuned for as long", "#000000", "D"),
    "dense-distilled": ("dense + teacher", "#56B4E9", "D"),
    "one-shot": ("one-shot, no retraining", "#CC79A7", "v"),
    **{
        f"retrained-{name}": (f"{label}, retrained", colour, marker)
        for name, (label, colour, marker) in CRITERIA.items()
    },
    "original": ("the 2021 recipe", "#D55E00", "X"),
    "original-distilled": ("the 2021 recipe + teacher", "#D55E00", "P"),
    "gradual": ("gradual", "#E69F00", "s"),
    "gradual-distilled": ("gradual + teacher", "#0072B2", "o"),
    "two-four": ("2:4", "#F0E442", "s"),
    "two-four-distilled": ("2:4 + teacher", "#882255", "p"),
    "narrow": ("fewer neurons", "#009E73", "s"),
    "narrow-distilled": ("fewer neurons + teacher", "#009E73", "o"),
    "taught-by-zero-shot": ("gradual + pretrained teacher", "#009E73", "<"),
    "taught-by-dense": ("gradual + fine-tuned teacher", "#009E73", ">"),
    "taught-by-xl": ("gradual + GPT-2 XL as teacher", "#009E73", "^"),
}

# parameter -> what the reader calls it; the others go by their own names
PARAMETER_NAMES = {
    "lr": "learning rate",
    "alpha": "weight of the teacher",
    "sparsity_start": "first cut",
    "prune_until": "last cut after",
    "regrow": "regrowth",
}


def look(recipe: str) -> tuple[str, str, str]:
    """What the reader calls a recipe, its colour and marker.

    A run on an axis is named by its recipe and what is changed, as in `gradual-lr0.004`: it is
    called by both, and looks like its recipe. A name that is not known is its own label.
    """
    known = _known(recipe)
    if known is None:
        return recipe, "#777777", "o"
    label, colour, marker = METHODS[known]
    axes = map(_axis, re.split(r"(?<=\d)-(?=[a-z])", recipe[len(known) + 1 :]))
    return ", ".join(filter(None, (label, *axes))), colour, marker


def _axis(change):
    """A part of a run's name, as the reader calls it: `lr0.004` is a learning rate of 0.004."""
    if _known(change):
        return f"taught by {change}"
    pattern = re.sub(r"^(\d)of(\d)$", r"\1:\2", change)
    name, value = re.fullmatch(r"(\D*)(.*)", pattern).groups()
    return f"{PARAMETER_NAMES.get(name, name).replace('_', ' ')} {value}".strip()


def place(recipe: str) -> int:
    """Where a recipe stands in tables: where `METHODS` has it, or else last."""
    return [*METHODS, None].index(_known(recipe))


def _known(recipe):
    """The entry of `METHODS` that a recipe is, or is a variant of; None if there is none."""
    names = (name for name in METHODS if recipe == name or recipe.startswith(f"{name}-"))
    return max(names, key=len, default=None)


# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom; the last is kept for more
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

# not about how good one pruned model is
_ASIDE = ("00_pretraining", "04_size_and_speed", "06_criteria")
_COLUMNS = ("recipe", "seed", "sparsity", "perplexity")  # of a table without rows


def frame(
    records: list[dict], published: dict | None = None, missing: dict | None = None
) -> pd.DataFrame:
    """One row a record.

    Args:
        records: of one study.
        published: {recipe: perplexity} that others reported, see `studies.context`.
        missing: {recipe: why a row is not there, or not of all runs}.

    Returns:
        DataFrame with run, recipe, seed, sparsity (measured, of the block matrices, rounded to a
        tenth of a percent; where whole neurons went, the share of weights gone), scope,
        model_sparsity, perplexity and test (of the validation and the test split), ratio (to the
        dense control of the same seed), tokens, seconds. `published` and `missing` travel along
        as attributes.
    """
    rows = []
    for record in records:
        if record["notebook"] in _ASIDE:
            continue
        metrics, training = record["metrics"], record["training"]
        rows.append({
            "run": record["run"], "recipe": record["recipe"], "seed": record["seed"],
            "sparsity": round(record.get("removed", record["sparsity"]["prunable"]), 3),
            "scope": record["parameters"].get("scope", ""),
            "model_sparsity": record["sparsity"]["model"],
            "perplexity": float(metrics["validation"]["perplexity"]),
            "test": float(metrics["test"]["perplexity"]),
            "tokens": training["tokens"], "seconds": training["seconds"],
        })  # fmt: skip
    table = pd.DataFrame(rows, columns=None if rows else _COLUMNS)
    control = _of_its_control(table)
    table["ratio"] = table.perplexity / control.perplexity
    table["test_ratio"] = table.test / control.test
    table["order"] = table.recipe.map(place)
    table["name"] = table.recipe.str.replace(r"\d+", lambda found: found[0].zfill(9), regex=True)
    table = table.sort_values(["order", "name", "sparsity", "seed"], ignore_index=True)
    table = table.drop(columns=["order", "name"])
    table.attrs = {"published": published or {}, "missing": missing or {}}
    return table


def _of_its_control(table):
    """Perplexities of each run's control: of its seed and, if there are several, its length."""
    controls = table[table.recipe.map(_known) == "control"].sort_values("recipe")
    equal = ["seed", "tokens"] if controls.recipe.nunique() > 1 else ["seed"]
    levels = controls.drop_duplicates(equal)[[*equal, "perplexity", "test"]]
    return table[equal].merge(levels, on=equal, how="left")


def curve(records: list[dict]) -> pd.DataFrame:
    """One row a point of the one-shot curves: sparsity, scope, criterion, seed, perplexity."""
    rows = [
        {key: row[key] for key in ("sparsity", "scope", "criterion")}
        | {"seed": record["seed"], "perplexity": float(row["validation"]["perplexity"])}
        for record in records
        for row in record.get("curve") or []
    ]
    return pd.DataFrame(rows, columns=["sparsity", "scope", "criterion", "seed", "perplexity"])


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

    Args:
        records: of one study.

    Returns:
        DataFrame with recipe, sparsity, perplexity, bytes (see `stored_bytes`) and time: that of
        writing a token, as a fraction of the dense model's, for a model of the shape that notebook
        04 measured with as large a share of its weights gone (interpolated between the measured
        shares on a logarithmic scale). NaN outside of what was measured.
    """
    size = {record["run"]: stored_bytes(record) for record in records if "model" in record}
    rows = summary(frame(records))[["recipe", "sparsity", "perplexity", "runs"]].copy()
    rows["bytes"] = [sum(map(size.get, runs)) / len(runs) for runs in rows.pop("runs")]
    measured = [row for record in records for row in record.get("seconds_by_share", [])]
    kinds = rows.recipe.str.startswith("narrow").map({True: "narrow", False: "sparse"})
    rows["time"] = [
        _time_at(gone, [row for row in measured if (row["kind"], row["use"]) == (kind, "writing")])
        for kind, gone in zip(kinds, rows.sparsity, strict=True)
    ]
    return rows


def _time_at(gone, measured):
    if gone < 0.001:
        return 1.0
    points = sorted((row["gone"], math.log(row["rival"] / row["dense"])) for row in measured)
    # A share is what could be reached: neurons come in eights.
    if not points or not points[0][0] - 0.01 <= gone <= points[-1][0] + 0.01:
        return math.nan
    return math.exp(np.interp(gone, *zip(*points, strict=True)))


def front(rows: pd.DataFrame, cost: str) -> pd.Series:
    """The Pareto front: True where no other row costs less and has a lower perplexity.

    Args:
        rows: DataFrame with perplexity and the cost.  cost: name of its column.
    """
    best = rows.sort_values([cost, "perplexity"]).perplexity
    return (best < best.cummin().shift(fill_value=math.inf)).reindex(rows.index)


def by_steps(records: list[dict]) -> pd.DataFrame:
    """Perplexity against the length of training, a row a trained run.

    Args:
        records: of a study; runs of which the number of steps is not an axis are left out, as are
            those that learn at another rate.

    Returns:
        DataFrame with recipe (without that axis), sparsity (as asked for), steps, seed, perplexity.
    """
    rows = []
    for record in records:
        steps = record["training"]["steps"]
        series = record["recipe"].removesuffix(f"-steps{steps}")
        if series != record["recipe"]:
            level = float(record["metrics"]["validation"]["perplexity"])
            rows.append((series, record["sparsity"]["requested"], steps, record["seed"], level))
    table = pd.DataFrame(rows, columns=["recipe", "sparsity", "steps", "seed", "perplexity"])
    return table.sort_values(list(table.columns[:-1]), ignore_index=True)


def with_one_shot(table: pd.DataFrame, curve: pd.DataFrame) -> pd.DataFrame:
    """Runs by criterion and level, each beside what the same cut gives without retraining.

    Args:
        table: of `frame`.  curve: of `curve`, from the same seeds.

    Returns:
        DataFrame: the rows of pruned runs, in the order of their sparsity and patterns last, with
        level (sparsity in percent, or the pattern), method (criterion, or recipe if it cuts
        gradually) and one_shot (perplexity; NaN if not measured).
    """
    rows = table[table.sparsity > 0].copy()
    patterned = rows.scope.str.contains(":")
    rows = rows.assign(patterned=patterned).sort_values(["patterned", "sparsity"], kind="stable")
    rows["level"] = rows.scope.where(rows.patterned, (100 * rows.sparsity).map("{:.0f} %".format))
    method = rows.recipe.map(lambda recipe: _known(recipe) or recipe)
    rows["method"] = method.str.replace("two-four", "gradual").str.removeprefix("retrained-")
    known = curve.assign(sparsity=curve.sparsity.round(2))
    known = known.set_index(["criterion", "scope", "sparsity", "seed"]).perplexity
    known = known[~known.index.duplicated()]
    # to a percent: rows of few weights cannot lose exactly as many as was asked for
    keys = zip(rows.method, rows.scope, rows.sparsity.round(2), rows.seed, strict=True)
    rows["one_shot"] = [known.get(key, float("nan")) for key in keys]
    return rows


def half_width(values: pd.Series) -> float:
    """Half of the 95 % interval of a mean over seeds: t s / sqrt(n), after Student (1908).

    Args:
        values: one a seed; differences of paired runs, so that what the seeds share cancels.

    Returns:
        float; NaN for a single seed.
    """
    freedom = len(values) - 1
    return _STUDENT[min(freedom, len(_STUDENT)) - 1] * values.sem() if freedom else math.nan


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each recipe and sparsity, with the standard deviation and the count."""
    groups = table.groupby(["recipe", "sparsity"], sort=False)
    return groups.agg(
        perplexity=("perplexity", "mean"), spread=("perplexity", "std"), test=("test", "mean"),
        ratio=("ratio", "mean"), test_ratio=("test_ratio", "mean"),
        model_sparsity=("model_sparsity", "mean"),
        tokens=("tokens", "mean"), seconds=("seconds", "mean"), seeds=("seed", list),
        runs=("run", list),
    ).reset_index()  # fmt: skip


def headings(table: pd.DataFrame) -> tuple[str, ...]:
    """Column titles of `rows`; a study that re-does another one has one more."""
    extra = ("published",) if table.attrs["published"] else ()
    measured = ("perplexity", "x control", "test", "test x control")
    return ("model", "sparsity", *extra, *measured, "records")


def rows(table: pd.DataFrame, link: Callable) -> Iterator[tuple[str, ...]]:
    """Formatted cells of the summary, in the order of `headings`.

    Args:
        table: of `frame`.  link: function (run, seed) -> text that leads to the record.
    """
    published = table.attrs["published"]

    def reported(recipe):
        return (number(published[recipe]) if recipe in published else "",) if published else ()

    for recipe, why in table.attrs["missing"].items():
        name = look(recipe)[0]
        yield name, "", *reported(recipe), why, "", "", "", ""
    for row in summary(table).itertuples():
        spread = f" ± {row.spread:.2f}" if len(row.seeds) > 1 else ""
        yield (
            look(row.recipe)[0],
            f"{100 * row.sparsity:.0f} %" if row.sparsity >= 0.001 else "none",
            *reported(row.recipe),
            number(row.perplexity) + spread,
            _ratio(row.ratio),
            number(row.test),
            _ratio(row.test_ratio),
            " ".join(link(run, seed) for run, seed in zip(row.runs, row.seeds, strict=True)),
        )


def _ratio(value):
    return f"{value:.2f}" if value == value else ""


def markdown(table: pd.DataFrame, folder: str) -> str:
    """The table of README and notebook; `folder` is the address of the records."""
    cells = rows(table, lambda run, seed: f"[{seed}]({folder}/{run}.json)")
    titles = headings(table)
    lines = [titles, ("---", *("--:" for _ in titles[2:]), "---"), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(table: pd.DataFrame) -> str:
    """The table for a terminal."""
    lines = [headings(table)[:-1], *(cells[:-1] for cells in rows(table, lambda run, seed: ""))]
    width = 2 + max(len(line[0]) for line in lines)
    return "\n".join(
        f"{line[0]:<{width}}" + "".join(f"{cell:>15}" for cell in line[1:]) for line in lines
    )


def answer(table: pd.DataFrame) -> str:
    """The study's answer in sentences, made of its numbers; '' while runs are missing."""
    means = summary(table).set_index(["recipe", "sparsity"])
    lines = []
    for sparsity in (0.5, 0.8, 0.9, 0.95):
        taught, alone = (
            means.loc[(recipe, sparsity)] if (recipe, sparsity) in means.index else None
            for recipe in ("gradual-distilled", "gradual")
        )  # fmt: skip
        if taught is not None and alone is not None:
            lines.append(
                f"- **{100 * sparsity:.0f} % of the block weights gone**: with a teacher "
                f"{taught.ratio:.2f} x the perplexity of the dense control (test text: "
                f"{taught.test_ratio:.2f} x), without one {alone.ratio:.2f} x "
                f"({alone.test_ratio:.2f} x)."
            )
    return "\n".join(lines)


def number(value: float) -> str:
    """Three to four significant digits; `inf` where the exponential overflowed."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"
