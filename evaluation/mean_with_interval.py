"""A mean and its bootstrap interval as entries of an evaluator's flat dict."""

import math
from collections.abc import Sequence

import numpy as np

from poise.evaluation.bootstrap import bootstrap_interval


def mean_with_interval(name: str, values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """`name`, `name_low`, `name_high` (95 %); no bounds where there are too few values for them."""
    low, high = bootstrap_interval(values)
    mean = {name: float(np.mean(values))}
    return mean if math.isnan(low) else {**mean, f"{name}_low": low, f"{name}_high": high}
