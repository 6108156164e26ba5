"""Are scores probabilities? Reliability by bins, expected calibration error, and the calibration that mends it.

How well a dual encoder retrieves, classifies and tags, from unit vectors of images and texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .metrics.retrieval_recall import retrieval_scores
from .metrics.zero_shot_classification import zero_shot_scores
from .whole_files import save_figure


@dataclass(frozen=True)
class ReliabilityBin:
    """Decisions whose score lies in [low, high): how many, their mean score, and how often they were right."""

    low: float
    high: float
    count: int
    score: float
    frequency: float


def reliability_bins(scores: np.ndarray, truth: np.ndarray, bins: int = 15) -> list[ReliabilityBin]:
    """
    Decisions by score, in bins of equal width; empty ones are left out.

    Args:
        scores (`np.ndarray`): in [0, 1], of any shape.
        truth (`np.ndarray`): bool, the same shape.
        bins (`int`, *optional*, defaults to 15): as Guo et al.

    Raises:
        ValueError: shapes that differ, no decisions, or scores outside [0, 1].
    """
    scores, truth = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(truth, dtype=bool).ravel()  # (N,) each
    if scores.shape != truth.shape or scores.size == 0:
        raise ValueError(
            f"{scores.size} scores and {truth.size} truths: give one truth for each of at least one score."
        )
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores must lie in [0, 1]: turn logits into probabilities first.")
    place = np.minimum((scores * bins).astype(int), bins - 1)  # (N,)
    found = []
    for number in np.unique(place):
        inside = place == number
        found.append(
            ReliabilityBin(
                number / bins, (number + 1) / bins, int(inside.sum()), float(scores[inside].mean()),
                float(truth[inside].mean()),
            )
        )  # fmt: skip
    return found


def expected_calibration_error(scores: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Mean distance of score and frequency over the bins, weighted by their decisions (Guo et al., arXiv 1706.04599,
    equation 3). For the many tags that are absent and known to be, it is small by itself: see also
    [`average_calibration_error`]."""
    found = reliability_bins(scores, truth, bins)
    return sum(part.count * abs(part.score - part.frequency) for part in found) / sum(part.count for part in found)


def average_calibration_error(scores: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """The same with every bin counting alike, so that the rare high scores are heard (Neumann et al., 2018)."""
    found = reliability_bins(scores, truth, bins)
    return sum(abs(part.score - part.frequency) for part in found) / len(found)


def fit_temperature(similarities: np.ndarray, truth: np.ndarray, steps: int = 100) -> tuple[float, float]:
    """
    Temperature and bias for which sigmoid(similarity / temperature + bias) explains the truth best.

    Temperature scaling (arXiv 1706.04599, section 4.2) of one yes-or-no decision per tag; such a decision needs a bias,
    too (Platt 1999). Maximum likelihood by Newton's method, with Platt's smoothed targets, so that separable decisions
    keep a finite temperature.

    Args:
        similarities (`np.ndarray`): of images and tags, any shape.
        truth (`np.ndarray`): bool, the same shape.

    Returns:
        (temperature above 0, bias).

    Raises:
        ValueError: only true or only false decisions, or similarities that fall with the truth.
    """
    x, y = np.asarray(similarities, dtype=np.float64).ravel(), np.asarray(truth, dtype=bool).ravel()  # (N,) each
    positive, negative = int(y.sum()), int((~y).sum())
    if not positive or not negative:
        raise ValueError(f"{positive} true and {negative} false decisions: a calibration needs both.")
    target = np.where(y, (positive + 1) / (positive + 2), 1 / (negative + 2))  # (N,)
    mean, spread = x.mean(), x.std() or 1.0
    features = np.stack([(x - mean) / spread, np.ones_like(x)], axis=1)  # (N, 2)
    weights = np.array([1.0, np.log(positive / negative)])  # (2,)
    for _ in range(steps):
        probability = 1 / (1 + np.exp(-(features @ weights)))  # (N,)
        gradient = features.T @ (probability - target)  # (2,)
        curvature = (features * (probability * (1 - probability))[:, None]).T @ features + 1e-9 * np.eye(2)  # (2, 2)
        step = np.linalg.solve(curvature, gradient)  # (2,)
        weights = weights - step * min(1.0, 2.0 / np.abs(step).max())
        if np.abs(step).max() < 1e-8:
            break
    slope, offset = weights[0] / spread, weights[1] - weights[0] * mean / spread
    if slope <= 0:
        raise ValueError("similarities are lower where the tag is true: this model cannot tag.")
    return float(1 / slope), float(offset)


def draw_reliability(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], path: str | Path, bins: int = 15, title: str = ""
) -> None:
    """
    One reliability diagram for each named (scores, truth), beside each other, as PNG.

    Above, how often tags of a score are true, with the diagonal of perfect scores; below, how many there are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 5.2), layout="constrained")
    axes: Any = figure.subplots(2, len(curves), height_ratios=[3, 1], sharex=True, sharey="row", squeeze=False)
    for (upper, lower), (name, (scores, truth)) in zip(axes.T, curves.items(), strict=True):
        _draw_curve(upper, lower, reliability_bins(scores, truth, bins), bins)
        error = expected_calibration_error(scores, truth, bins)
        average = average_calibration_error(scores, truth, bins)
        upper.set_title(f"{name}\nexpected error {error:.3f}, mean over bins {average:.3f}", fontsize=10, loc="left")
    axes[0, 0].set_ylabel("share of true tags")
    axes[1, 0].set_ylabel("decisions")
    if title:
        figure.suptitle(title, fontsize=11)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, dpi=120)


def _draw_curve(upper, lower, found: Sequence[ReliabilityBin], bins: int) -> None:
    left, width = [part.low for part in found], 1 / bins
    upper.plot([0, 1], [0, 1], color="#6b7280", linewidth=1, linestyle=":")
    upper.bar(left, [p.frequency for p in found], width * 0.94, align="edge", color="#93b4f5", edgecolor="#2563eb")
    upper.plot([p.score for p in found], [p.frequency for p in found], "o", color="#1e3a8a", markersize=4)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1.02)
    lower.bar(left, [p.count for p in found], width * 0.94, align="edge", color="#9aa5b1")
    lower.set_yscale("log")
    lower.set_xlabel("score")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)


def retrieval_recall(
    similarity: np.ndarray, texts_of_image: Sequence[Sequence[int]], top_k: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@k both ways of similarities (N, M), and the recall@1 that guessing reaches, by direction.

    Args:
        similarity (`np.ndarray` (N, M)): image by text.
        texts_of_image: per image, the texts that count as right.
    """
    images, texts = similarity.shape
    top_k = [k for k in top_k if k <= min(images, texts)] or [1]
    result = {
        name: float(values.mean()) for name, values in retrieval_scores(similarity, texts_of_image, top_k).items()
    }
    matches = sum(len(own) for own in texts_of_image)
    result["image_to_text_chance@1"] = matches / images / texts
    result["text_to_image_chance@1"] = matches / texts / images
    return result


def tagging_scores(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How well scores (N, C) tell which tags are true; images without a known tag are left out.

    Returns:
        `dict[str, float]`: `zero_shot_accuracy` (the best tag of an image is true) and its `chance`, the
        `mean_average_precision` over images, `precision`, `recall` and `f1` of the decisions at 0.5, and the
        calibration errors.
    """
    known = truth.any(axis=1)  # (N,)
    scores, truth = scores[known], truth[known]  # (n, C) each
    labels = [np.flatnonzero(row).tolist() for row in truth]
    said = scores >= 0.5  # (n, C)
    hits = float((said & truth).sum())
    precision, recall = hits / max(1.0, float(said.sum())), hits / float(truth.sum())
    return {
        "zero_shot_accuracy": float(zero_shot_scores(scores, labels, (1,))["top_1"].mean()),
        "chance": float(truth.mean()),
        "mean_average_precision": mean_average_precision(scores, truth),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(1e-12, precision + recall),
        "expected_calibration_error": expected_calibration_error(scores, truth),
        "average_calibration_error": average_calibration_error(scores, truth),
    }


def mean_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean over rows of the average precision of their ranking (N, C); equal scores go against the model."""
    order = np.lexsort((truth, -scores), axis=1)  # (N, C): by falling score, false ones first among equals
    ranked = np.take_along_axis(truth, order, axis=1)  # (N, C)
    precision = np.cumsum(ranked, axis=1) / np.arange(1, truth.shape[1] + 1)  # (N, C)
    return float(((precision * ranked).sum(axis=1) / ranked.sum(axis=1)).mean())


def truth_table(names_present: Sequence[Any], vocabulary: Sequence[str]) -> np.ndarray:
    """Which tag of the vocabulary is true of which image (N, C), bool."""
    return np.array([[name in present for name in vocabulary] for present in names_present], dtype=bool)
