"""Data frames to the tables of README, notebooks, report and terminal: columns and rows."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import pandas as pd

from prunegpt_utils.report.frames import gains, summary
from prunegpt_utils.report.methods import method_label


def headings(table: pd.DataFrame) -> tuple[str, ...]:
    """Column titles of `rows`; a study that re-does another one has one more."""
    extra = ("published",) if table.attrs["published"] else ()
    measured = ("perplexity", "x control", "test", "test x control")
    return ("model", "sparsity", *extra, *measured, "records")


def rows(table: pd.DataFrame, link: Callable) -> Iterator[tuple[str, ...]]:
    """Formatted cells of the summary, in the order of `headings`.

    Args:
        table: of `frames.frame`.  link: function (run, seed) -> text that leads to the record.
    """
    published, specs = table.attrs["published"], table.attrs["specs"]

    def reported(recipe):
        return (number(published[recipe]) if recipe in published else "",) if published else ()

    for recipe, why in table.attrs["missing"].items():
        name = method_label(*specs.get(recipe, (recipe, {})))
        yield name, "", *reported(recipe), why, "", "", "", ""
    for row in summary(table).itertuples():
        spread = f" ± {row.spread:.2f}" if row.spread == row.spread else ""
        yield (
            row.label, f"{100 * row.sparsity:.0f} %" if row.sparsity >= 0.001 else "none",
            *reported(row.recipe), number(row.perplexity) + spread, _ratio(row.ratio),
            number(row.test), _ratio(row.test_ratio), " ".join(map(link, row.runs, row.seeds)),
        )  # fmt: skip


def _ratio(value):
    """Also of what a perplexity that overflowed is compared with, which says nothing."""
    return f"{value:.2f}" if math.isfinite(value) else ""


def markdown(table: pd.DataFrame, folder: str) -> str:
    """The table of README and notebook; `folder` is the address of the records."""
    cells = rows(table, lambda run, seed: f"[{seed}]({folder}/{run}.json)")
    titles = headings(table)
    return markdown_table(titles, cells, range(1, len(titles) - 1))


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
    width = 2 + max(len(name) for name, *_ in lines)
    padded = [[name.ljust(width), *(cell.rjust(15) for cell in cells)] for name, *cells in lines]
    return "\n".join(map("".join, padded))


def answer(table: pd.DataFrame) -> str:
    """The study's answer in sentences, of the seeds that have all it needs; '' if none has."""
    pairs = gains(table[table.recipe.isin(["gradual-distilled", "gradual"])])
    pairs = pairs[pairs.requested.isin([0.5, 0.8, 0.9, 0.95])]
    columns = ["ratio", "test_ratio", "alone_ratio", "alone_test_ratio"]
    means = pairs.dropna(subset=columns).groupby("requested")[columns].mean()
    return "\n".join(
        f"- **{100 * sparsity:.0f} % of the block weights gone**: with a teacher "
        f"{taught:.2f} x the perplexity of the dense control (test text: "
        f"{taught_test:.2f} x), without one {alone:.2f} x ({alone_test:.2f} x)."
        for sparsity, taught, taught_test, alone, alone_test in means.itertuples()
    )


def number(value: float) -> str:
    """Three to four significant digits; `inf` where the exponential overflowed, `-` for none."""
    if value != value:  # NaN: nobody measured it
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"
