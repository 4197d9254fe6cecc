"""How sure a mean over seeds is."""

import math

import pandas as pd


def half_width(values: pd.Series) -> float:
    """Half of the 95 % interval of a mean over seeds: t s / sqrt(n), after Student (1908).

    Values are one a seed, NaN not counted; the interval of fewer than two is NaN.
    """
    freedom = values.count() - 1
    if freedom < 1:
        return math.nan
    from scipy import stats  # half a second, for who needs an interval

    return stats.t.ppf(0.975, freedom) * values.sem()


def with_interval(values: pd.Series) -> str:
    """A mean over seeds ± half of its 95 % interval, in brackets where the interval holds 0.

    Values are one a seed, NaN not counted: `+0.120 ± 0.030`, `(+0.010 ± 0.030)`, `+0.120, one
    seed`, which says nothing of others, or nothing at all.
    """
    if (count := values.count()) < 2:
        return f"{values.mean():+.3f}, one seed" if count else ""
    text = f"{values.mean():+.3f} ± {half_width(values):.3f}"
    return text if abs(values.mean()) > half_width(values) else f"({text})"
