"""How sure a mean over seeds is."""

import math

import pandas as pd
from scipy import stats


def half_width(values: pd.Series) -> float:
    """Half of the 95 % interval of a mean over seeds: t s / sqrt(n), after Student (1908).

    Values are one a seed, NaN not counted; the interval of fewer than two is NaN.
    """
    freedom = values.count() - 1
    return stats.t.ppf(0.975, freedom) * values.sem() if freedom > 0 else math.nan
