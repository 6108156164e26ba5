"""Bootstrap intervals: how far a score would move with another sample of the same size.

A mean and its bootstrap interval as entries of an evaluator's flat dict.

A plain table of scores with their intervals, for terminals and text files.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

# Sums over each resample (R, S) and the number of samples in each (R,) -> the statistic of each (R,).
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]

MAX_CELLS = 4_000_000  # of a block of resamples: 32 MB of counts


def _mean(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sizes


def bootstrap_interval(
    scores: np.ndarray | Sequence[float],
    statistic: Statistic = _mean,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of independent samples, the mean by default.

    A statistic that is not a mean of per-sample scores but a function of sums (corpus BLEU, F1) is given as rows of
    addends with a function of their sums.

    Args:
        scores (`np.ndarray` (N,) or (N, S)): one score, or one row of addends, per sample.
        statistic (*optional*, defaults to the mean): `(sums (R, S), sizes (R,)) -> (R,)`.
        groups (`Sequence` (N,), *optional*): what belongs together and is drawn together, such as the image that
            several questions are about. Such questions are not independent; ignoring that narrows the interval.
        confidence (`float`, *optional*, defaults to 0.95): in (0, 1).
        resamples (`int`, *optional*, defaults to 1000)
        seed (`int`, *optional*, defaults to 0)

    Equal scores give an interval without width, for no resample differs; it does not say that other samples would not.

    Returns:
        `tuple[float, float]`: lower and upper bound; NaN with fewer than two groups, where nothing can be resampled.

    Raises:
        ValueError: no scores, scores that are not finite, or a confidence or number of resamples out of range.

    Source: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    rows = np.asarray(scores, dtype=np.float64)
    rows = rows[:, None] if rows.ndim == 1 else rows  # (N, S)
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"scores has shape {rows.shape}: give one score, or one row, per sample.")
    if not np.isfinite(rows).all():
        raise ValueError(f"scores[{int(np.argmin(np.isfinite(rows).all(axis=1)))}] is not finite.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, such as 0.95.")
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be 1 or more; 1000 gives stable bounds.")
    sizes = np.ones(len(rows))  # (N,)
    if groups is not None:
        rows, sizes = _group_sums(rows, groups)  # (G, S), (G,)
    count = len(rows)
    if count < 2:
        return float("nan"), float("nan")

    generator = np.random.default_rng(seed)
    block = max(1, min(resamples, MAX_CELLS // count))
    values = []
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        drawn = generator.integers(count, size=(size, count))  # (R, G)
        drawn += np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)  # (R, G)
        values.append(statistic(times @ rows, times @ sizes))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return float(low), float(high)


def _group_sums(rows: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    if len(groups) != len(rows):
        raise ValueError(f"groups has {len(groups)} entries for {len(rows)} scores: give one per score.")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])  # (N,)
    sums = np.zeros((len(numbers), rows.shape[1]))  # (G, S)
    np.add.at(sums, index, rows)
    return sums, np.bincount(index).astype(np.float64)


def mean_with_interval(
    name: str, values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """
    `name`, `name_low`, `name_high` (95 %); no bounds where there are too few values, or groups, for them. `groups` are
    drawn as wholes, see [`bootstrap_interval`].
    """
    low, high = bootstrap_interval(values, groups=groups)
    mean = {name: float(np.mean(values))}
    return mean if math.isnan(low) else {**mean, f"{name}_low": low, f"{name}_high": high}


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns padded to their widest cell, a rule below the headers; the first `left` columns left-aligned."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, rows)])


def score_table(metrics: Mapping[str, float], confidence: float = 0.95) -> str:
    """Scores, their intervals where there are any, from the flat dict of an evaluator.

    Keys that end in `_low` and `_high` are the bounds of the key before; `TASK_samples` is a whole number.
    """
    rows = []
    for name, value in metrics.items():
        if name.endswith(("_low", "_high")) and name.rsplit("_", 1)[0] in metrics:
            continue
        bounds = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = "" if None in bounds else f"{bounds[0]:.4f} – {bounds[1]:.4f}"
        rows.append((name, f"{value:.0f}" if name.endswith("_samples") else f"{value:.4f}", interval))
    return format_table(("score", "value", f"{confidence:.0%} interval"), rows)
