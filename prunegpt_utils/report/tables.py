"""Data frames to the tables of README, notebooks, report and terminal: columns and rows."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from prunegpt_utils.report import best_dense
from prunegpt_utils.report.frames import gains, summary
from prunegpt_utils.report.methods import TEXT_LABELS, method_label

# group of columns that can be switched on -> what a reader is offered
GROUPS = {
    "control": "compared with the dense control",
    "training": "learning rate and kept step",
    "fidelity": "fidelity to the reference model",
    "texts": "further texts",
}
_PAIRED = "95 % interval (test)"


class Column(NamedTuple):
    """A column of the table: its title, the group it belongs to ('' is always shown), its cell."""

    title: str
    group: str
    cell: Callable[[Any], str]  # of a row of `frames.summary`


def columns(table: pd.DataFrame, groups: Collection[str] = ()) -> list[Column]:
    """The columns between the sparsity and the records, those without any value left out.

    Args:
        table: of `frames.frame`.  groups: keys of `GROUPS` that are shown.
    """
    published, paired = table.attrs["published"], best_dense.intervals(table)
    quoted = Column("published", "", lambda row: _published(published, row.recipe))
    shown = [
        *([quoted] * bool(published)),
        Column("test", "", lambda row: _spread(row.test, row.test_spread)),
        Column("x best dense (test)", "", lambda row: _ratio(row.test_ratio)),
        *([Column(_PAIRED, "", lambda row: _interval(paired, row))] * bool(paired)),
        Column("validation", "", lambda row: _spread(row.perplexity, row.spread)),
        Column("x best dense (validation)", "", lambda row: _ratio(row.ratio)),
        Column("x control (test)", "control", lambda row: _ratio(row.control_test_ratio)),
        Column("x control (validation)", "control", lambda row: _ratio(row.control_ratio)),
        Column("learning rate", "training", lambda row: f"{row.lr:.2g}" if row.lr > 0 else ""),
        Column("kept step", "training", _kept_step),
        *(_fidelity() if table.fidelity.notna().any() else ()),
        *_texts(table),
    ]  # fmt: skip
    return [column for column in shown if not column.group or column.group in groups]


def _published(published, recipe):
    return number(published[recipe]) if recipe in published else ""


def _spread(mean, spread):
    return number(mean) + _plus_or_minus(spread)


def _plus_or_minus(spread):
    """A standard deviation behind its mean; '' of one value. It is never told as nothing."""
    if not math.isfinite(spread):
        return ""
    return f" ± {spread:.2f}" if spread >= 0.005 else " ± <0.01"


def _ratio(value):
    """Also of what a perplexity that overflowed is compared with, which says nothing."""
    return f"{value:.2f}" if math.isfinite(value) else ""


def _interval(paired, row):
    found = paired.get(tuple(getattr(row, name) for name in best_dense.GROUP))
    return "{:.2f} to {:.2f}".format(*found) if found else ""


def _kept_step(row):
    kept = [step for step in row.best_step if step and step == step]
    ends = dict.fromkeys(f"{int(step):,}" for step in (min(kept), max(kept))) if kept else {}
    return f"{' to '.join(ends)} of {row.steps:,}" if ends else ""


# field of `fidelity` in a record -> (title, how it is written)
_FIDELITY = {
    "kl": ("KL divergence, nats a token", ".3f"), "same_top": ("same top choice", ".1%"),
    "flips_to_wrong": ("right there, wrong here", ".1%"),
    "flips_to_right": ("wrong there, right here", ".1%"),
    "ece": ("calibration error here", ".1%"),
    "reference_ece": ("calibration error there", ".1%"),
}  # fmt: skip


def _fidelity():
    return [
        Column(title, "fidelity", lambda row, f=field, s=spec: _mean(row.fidelity, f, s))
        for field, (title, spec) in _FIDELITY.items()
    ]


def _texts(table):
    for name in dict.fromkeys(name for texts in table.texts for name in texts):
        label = TEXT_LABELS.get(name, name)
        yield Column(
            label, "texts", lambda row, n=name: _mean(row.texts, n, "") or _missing(row, n)
        )
        title = f"x best dense ({label})"
        yield Column(title, "texts", lambda row, n=name: _mean(row.text_ratios, n, ".2f"))


def _missing(row, name):
    return f"needs {name}" if any(name in texts for texts in row.texts) else ""


def _mean(found, name, spec):
    """Mean over the seeds that have it, as text; `spec` '' is that of a perplexity."""
    known = [each[name] for each in found if isinstance(each, dict) and name in each]
    known = [value for value in known if value == value]  # NaN: the text was not to be had
    mean = math.fsum(known) / len(known) if known else math.nan
    text = format(mean, spec).replace("%", " %") if spec else number(mean)
    return text if math.isfinite(mean) else ""


def headings(table: pd.DataFrame, groups: Collection[str] = ()) -> tuple[str, ...]:
    """Column titles of `rows`, which has the same arguments."""
    return ("model", "sparsity", *(each.title for each in columns(table, groups)), "records")


def rows(
    table: pd.DataFrame, link: Callable, groups: Collection[str] = ()
) -> Iterator[tuple[str, ...]]:
    """Formatted cells of the summary, in the order of `headings`.

    Args:
        table: of `frames.frame`.  link: function (run, seed) -> text that leads to the record.
        groups: keys of `GROUPS` whose columns are shown.
    """
    published, specs = table.attrs["published"], table.attrs["specs"]
    shown = columns(table, groups)
    for recipe, why in table.attrs["missing"].items():
        name = method_label(*specs.get(recipe, (recipe, {})))
        cells = {"published": _published(published, recipe), "test": why}
        yield name, "", *(cells.get(column.title, "") for column in shown), ""
    for row in summary(table).itertuples():
        yield (
            row.label, f"{100 * row.sparsity:.0f} %" if row.sparsity >= 0.001 else "none",
            *(column.cell(row) for column in shown), " ".join(map(link, row.runs, row.seeds)),
        )  # fmt: skip


def notes(table: pd.DataFrame) -> list[str]:
    """What a reader of the table must know, in sentences; numbers come from the records."""
    known = table.dropna(subset=["test_tokens", "validation_tokens"])
    if known.empty:
        return []
    test, validation = (int(known[name].max()) for name in ("test_tokens", "validation_tokens"))
    best = best_dense.names(table)
    found = [
        f"The test text ({test:,} tokens) was scored once a run and chose nothing"
        f"{_apart(table, 'test')}.",
        f"The validation text ({validation:,} tokens) chose checkpoints and learning rates"
        f"{_apart(table, 'validation')}.",
        "± is the standard deviation over seeds.",
    ]
    if best_dense.intervals(table):
        found.append("The interval is over other text and, of several seeds, over other seeds too.")
    chosen = "*Best dense* is the dense model of as many steps that validation chose: "
    return [*found, f"{chosen}{', '.join(best)}."] if best else found


def _apart(table, split):
    told = best_dense.told_apart(table, split)
    least = f"{100 * math.expm1(told):.1f} %"
    return f"; it cannot tell apart what differs by less than about {least}" * (told == told)


def markdown(table: pd.DataFrame, folder: str, groups: Collection[str] = ()) -> str:
    """The table of README and notebook, and its `notes`.

    Args:
        table: of `frames.frame`.  folder: address of the records.
        groups: keys of `GROUPS` whose columns are shown as well.
    """
    cells = rows(table, lambda run, seed: f"[{seed}]({folder}/{run}.json)", groups)
    titles = headings(table, groups)
    lines = markdown_table(titles, cells, range(1, len(titles) - 1))
    return "\n\n".join([lines, " ".join(notes(table))]).strip()


def markdown_table(
    titles: Sequence[str], cells: Iterable[Sequence[str]], numbers: Sequence[int]
) -> str:
    """A table in Markdown; the columns at `numbers` are flush right."""
    rules = ["--:" if column in numbers else "---" for column in range(len(titles))]
    lines = ([cell.replace("|", "\\|") for cell in line] for line in (titles, rules, *cells))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(table: pd.DataFrame) -> str:
    """The table for a terminal."""
    lines = [headings(table)[:-1], *(cells[:-1] for cells in rows(table, lambda run, seed: ""))]
    widths = [2 + max(map(len, cells)) for cells in zip(*lines, strict=True)]
    padded = [
        [name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]
        for name, *cells in lines
    ]
    return "\n".join(map("".join, padded))


def answer(table: pd.DataFrame) -> str:
    """The study's answer in sentences, one a sparsity; '' if it has none, see `arms_of`."""
    lines = [
        f"- **{100 * sparsity:.0f} % of the block weights gone**: {_sentence(table, arms)}; "
        f"{_seeds([arms])}. Left of the whole model: {100 * _kept(table, arms):.0f} %."
        for sparsity, arms in arms_of(table).items()
    ]
    names = ", ".join(best_dense.names(table))
    best = f"- The best dense model, chosen on the validation text: {names}."
    return "\n".join([*lines, best]) if lines else ""


def verdict(table: pd.DataFrame, sparsities: Collection[float] = (0.5, 0.9)) -> str:
    """The same in one sentence, of some sparsities; '' if it has none."""
    found = {share: arms for share, arms in arms_of(table).items() if share in sparsities}
    text = "; ".join(
        f"with {100 * share:.0f} % of the block weights gone, a sparse model has "
        f"{_sentence(table, arms, brief=True)}"
        for share, arms in found.items()
    )
    known = ", 95 % intervals" if best_dense.intervals(table) else ""
    return f"{text[0].upper()}{text[1:]} ({_seeds(found.values())}{known})." if text else ""


def short(table: pd.DataFrame) -> str:
    """A small table of the answer: a row a sparsity, test perplexity ± its spread over seeds."""
    test, found = table.set_index("run").test, arms_of(table)
    columns = [name for name in _SHORT if any(name in arms for arms in found.values())]
    cells = []
    for sparsity, arms in found.items():
        means = [_plus_minus(test[arms.get(name, [])]) or "none" for name in columns]
        theirs = table[table.run.isin(arms["with a teacher"])].dense_run.dropna().unique()
        means.append(_plus_minus(test[theirs]))
        cells.append((f"{100 * sparsity:.0f} %", f"{100 * _kept(table, arms):.0f} %", *means))
    titles = ("block weights gone", "left of the whole model", *columns, "best dense model")
    return markdown_table(titles, cells, range(1, len(titles)))


_ANSWERED = (0.5, 0.8, 0.9, 0.95)
SMALL = "best small dense model tried of at most as many bytes"
_SHORT = ("with a teacher", "without one", SMALL)


def _plus_minus(values):
    values = values.dropna()
    return _spread(values.mean(), values.std()) if len(values) else ""


def _kept(table, arms):
    """Share of the weights of the whole model that is left, embeddings included."""
    return 1 - table[table.run.isin(arms["with a teacher"])].model_sparsity.mean()


def arms_of(table: pd.DataFrame) -> dict[float, dict[str, list[str]]]:
    """{sparsity: {name of an arm: its runs}} of a table of `frames.frame`, with a teacher first.

    Of seeds that have the same run with a teacher and without one; where a study swept the learning
    rate instead, each arm stands at the rate that validation chose for it.
    """
    pairs = gains(table[table.recipe.isin(["gradual-distilled", "gradual"])])
    pairs = pairs.dropna(subset=["test_ratio", "alone_test_ratio"])
    if len(pairs):
        answered = pairs[pairs.requested.isin(_ANSWERED)]
        return {
            sparsity: {"with a teacher": list(seeds.run), "without one": list(seeds.untaught)}
            for sparsity, seeds in answered.groupby("requested")
        }
    return dict(_arms_of_sweeps(table))


def _arms_of_sweeps(table):
    swept = table[table["axes"].map(lambda axes: axes.keys() == {"lr"}).astype(bool)]
    swept = swept[swept.base_recipe.isin(["gradual-distilled", "gradual"])]
    swept = swept[swept.test_ratio.notna() & swept.requested.isin(_ANSWERED)]
    chosen = best_dense.chosen_on_validation(swept, ["base_recipe", "requested"])
    small = best_dense.small_models(table)
    for sparsity, runs in chosen.groupby("requested"):
        arms = {"with a teacher": runs[runs.base_recipe == "gradual-distilled"],
                "without one": runs[runs.base_recipe == "gradual"]}  # fmt: skip
        fits = small[small.bytes16 <= runs.bytes16.mean()]
        fits = fits[fits.model.isin(runs.model) & fits.budget.isin(runs.budget)]
        arms[SMALL] = best_dense.chosen_on_validation(fits, ["model", "budget"])
        if len(arms["with a teacher"]):
            yield sparsity, {name: list(each.run) for name, each in arms.items() if len(each)}


def _sentence(table, arms, brief=False):
    """Ratios to the best dense model, an arm each; `brief` has their intervals and no spread."""
    parts = []
    for name, runs in arms.items():
        ratio, over = _in_words(table, pd.Series(runs), brief)
        to = "" if parts else f" the test perplexity of the {best_dense.kind(table)}"
        if name == SMALL:
            row = table[table.run == runs[0]].iloc[0]
            share = row.bytes16 / table[table.run.isin(arms["with a teacher"])].bytes16.mean()
            kind = method_label(row.base_recipe, {})
            name = f"the {name} ({kind}, {100 * share:.0f} % of them)"
        parts.append(f"{name} {ratio}{to}{over}")
    return ", ".join(parts)


def _seeds(found):
    """How many runs stand behind each number of some arms."""
    counts = {len(runs) for arms in found for runs in arms.values()}
    low, high = min(counts), max(counts)
    many = f"{low} to {high}" if low < high else f"{high}"
    return f"{many} seeds" if high > 1 else "one seed"


def _in_words(table, runs, brief):
    """Test ratio of some runs, and its interval; with its standard deviation unless `brief`."""
    ratios = table[table.run.isin(runs)].test_ratio
    paired = best_dense.intervals(table[table.run.isin([*runs, *table.dense_run.dropna()])])
    group = tuple(table.loc[table.run == runs.iloc[0], best_dense.GROUP].iloc[0])
    over = "{:.2f} to {:.2f}".format(*paired[group]) if group in paired else ""
    over = over and f" ({over})" if brief else over and f" (95 % interval {over})"
    return f"{ratios.mean():.2f}{'' if brief else _plus_or_minus(ratios.std())} x", over


def fidelity_table(found: dict) -> pd.DataFrame:
    """What a record says of fidelity, in words: a row a measure, one column of text."""
    lines = {
        title: f"{found[key]:{spec}}".replace("%", " %") for key, (title, spec) in _FIDELITY.items()
    }
    return pd.Series(lines).to_frame(f"beside {found['reference']}")


def number(value: float) -> str:
    """Three to four significant digits; `inf` where the exponential overflowed, `-` for none."""
    if value != value:  # NaN: nobody measured it
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"
