"""How sure a mean over seeds is."""

import math

import pandas as pd
from scipy import stats


def half_width(values: pd.Series) -> float:
    """Half of the 95 % interval of a mean over seeds: t s / sqrt(n), after Student (1908).

    Args:
        values: one a seed, at least two (else NaN); differences of paired runs, so that what the
            seeds share cancels.
    """
    freedom = len(values) - 1
    return stats.t.ppf(0.975, freedom) * values.sem() if freedom else math.nan
