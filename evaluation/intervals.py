"""Bootstrap intervals: how far a score would move with another sample of the same size.

A score with its interval stands in an evaluator's flat dict as `NAME`, `NAME_low` and `NAME_high`; [`Score`] alone
writes and reads these keys.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Sums over each resample (R, S) and the number of samples in each (R,) -> the statistic of each (R,).
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]

MAX_CELLS = 4_000_000  # of a block of resamples: 32 MB of counts


def mean_of(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The mean as a statistic of sums: of each resample (R,)."""
    return sums[:, 0] / sizes


def bootstrap_interval(
    scores: np.ndarray | Sequence[float],
    statistic: Statistic = mean_of,
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


@dataclass(frozen=True)
class Score:
    """A score and the bounds of its interval; these are `None` where there are too few samples for them."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def read(cls, scores: Mapping[str, float], name: str) -> "Score":
        """The score `name` of an evaluator's flat dict."""
        return cls(scores[name], scores.get(f"{name}_low"), scores.get(f"{name}_high"))

    def flat(self, name: str) -> dict[str, float]:
        """As entries of the flat dict."""
        entries = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {key: value for key, value in entries.items() if value is not None}

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval; without any the score itself."""
        return (self.value if self.low is None else self.low), (self.value if self.high is None else self.high)

    @property
    def errors(self) -> list[list[float]]:
        """Lengths below and above the value, (2, 1), as matplotlib draws them."""
        low, high = self.bounds
        return [[max(0.0, self.value - low)], [max(0.0, high - self.value)]]

    def text(self, form: str | None = None) -> str:
        """`0.512 [0.47, 0.55]`, or all three in a format such as `.0%`; the value alone where there is no interval."""
        value = format(self.value, form or ".3f")
        if self.low is None or self.high is None:
            return value
        low, high = (format(bound, form or ".2f") for bound in (self.low, self.high))
        return f"{value} [{low}, {high}]"


def estimate(
    scores: np.ndarray | Sequence[float],
    statistic: Statistic = mean_of,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    **options: Any,
) -> Score:
    """
    A statistic of all samples, the mean by default, with its interval where that is finite.

    Args:
        scores, statistic, groups, resamples, **options: as of [`bootstrap_interval`]; 0 resamples for no interval.
    """
    rows = np.asarray(scores, dtype=np.float64)
    columns = rows[None] if rows.ndim == 1 else rows.T  # (S, N)
    sums = np.array([[column.sum() for column in columns]])  # (1, S)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums, np.array([len(rows)]))[0])
        if not resamples:
            return Score(value)
        low, high = bootstrap_interval(scores, statistic, groups, resamples=resamples, **options)
    return Score(value, low, high) if np.isfinite(low) and np.isfinite(high) else Score(value)


def score_text(scores: Mapping[str, float], name: str, form: str | None = None) -> str:
    """[`Score.text`] of one of an evaluator's scores; empty where there is no such score."""
    return Score.read(scores, name).text(form) if name in scores else ""


def is_bound(name: str, scores: Mapping[str, float]) -> bool:
    """Whether a key of the flat dict is a bound of another one."""
    return name.endswith(("_low", "_high")) and name.rsplit("_", 1)[0] in scores


def card_row(
    scores: Mapping[str, float], name: str, condition: str, metric: str, dataset: str, count: str = "samples"
) -> dict[str, Any]:
    """One of an evaluator's scores as a row of the model card; `count` is the key of its number of samples."""
    score = Score.read(scores, name)
    bounds = {} if score.low is None else {"low": score.low, "high": score.high}
    row = {"condition": condition, "metric": metric, "value": score.value, "n": int(scores[count])}
    return {**row, **bounds, "dataset": dataset}


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

    `TASK_samples` is a whole number.
    """
    rows = []
    for name, value in metrics.items():
        if is_bound(name, metrics):
            continue
        score = Score.read(metrics, name)
        interval = "" if score.low is None else f"{score.low:.4f} – {score.high:.4f}"
        rows.append((name, f"{value:.0f}" if name.endswith("_samples") else f"{value:.4f}", interval))
    return format_table(("score", "value", f"{confidence:.0%} interval"), rows)
