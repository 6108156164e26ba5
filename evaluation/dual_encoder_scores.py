"""How well a dual encoder retrieves, classifies and tags, from unit vectors of pictures and texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from poise.evaluation.calibration import average_calibration_error, expected_calibration_error
from poise.evaluation.metrics.retrieval_recall import retrieval_scores
from poise.evaluation.metrics.zero_shot_classification import zero_shot_scores


def retrieval_recall(
    similarity: np.ndarray, texts_of_image: Sequence[Sequence[int]], top_k: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@k both ways of similarities (N, M), and the recall@1 that guessing reaches, by direction.

    Args:
        similarity (`np.ndarray` (N, M)): picture by text.
        texts_of_image: per picture, the texts that count as right.
    """
    pictures, texts = similarity.shape
    top_k = [k for k in top_k if k <= min(pictures, texts)] or [1]
    result = {
        name: float(values.mean()) for name, values in retrieval_scores(similarity, texts_of_image, top_k).items()
    }
    matches = sum(len(own) for own in texts_of_image)
    result["image_to_text_chance@1"] = matches / pictures / texts
    result["text_to_image_chance@1"] = matches / texts / pictures
    return result


def tagging_scores(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How well scores (N, C) tell which tags are true; pictures without a known tag are left out.

    Returns:
        `dict[str, float]`: `zero_shot_accuracy` (the best tag of a picture is true) and its `chance`, the
        `mean_average_precision` over pictures, `precision`, `recall` and `f1` of the decisions at 0.5, and the
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
    """Which tag of the vocabulary is true of which picture (N, C), bool."""
    return np.array([[name in present for name in vocabulary] for present in names_present], dtype=bool)
