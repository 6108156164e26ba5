"""Triplet cosines for `evaluate`: how near a tag embedding is to its own caption, and how far from a foreign one."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Mean cosine of anchors to their positives and to their negatives."
CITATION = "Schroff et al., FaceNet, CVPR 2015, section 3.1 (triplets)."
INPUTS = """
Args:
    predictions (`list[list[float]]`): anchor embeddings (tags and scores), one per triplet.
    positives (`list[list[float]]`): embeddings of the image's own caption.
    negatives (`list[list[float]]`): embeddings of another image's caption.

Returns:
    `dict[str, float]`: anchor_positive_cosine, anchor_negative_cosine, cosine_margin (their difference) and
    triplet_accuracy (share of triplets whose positive is nearer).
"""


def row_cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row with the same row of the other; 0 where one is the zero vector. (N, D), (N, D) -> (N,)."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)  # (N,)
    return np.divide((first * second).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)


def triplet_scores(anchors: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> dict[str, np.ndarray]:
    """Per triplet: the two cosines, their difference, and 1 where the positive is nearer; each (N,).

    Args:
        anchors, positives, negatives (`np.ndarray` (N, D))

    Raises:
        ValueError: shapes that differ, no rows, or values that are not finite.
    """
    anchors, positives, negatives = (np.asarray(rows, dtype=np.float64) for rows in (anchors, positives, negatives))
    if anchors.ndim != 2 or anchors.size == 0 or not anchors.shape == positives.shape == negatives.shape:
        raise ValueError(
            f"predictions {anchors.shape}, positives {positives.shape}, negatives {negatives.shape}: give three arrays "
            "of one shape (triplets, dimensions)."
        )
    for name, rows in (("predictions", anchors), ("positives", positives), ("negatives", negatives)):
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} holds NaN or infinity: check the encoder that made it.")
    to_positive, to_negative = row_cosines(anchors, positives), row_cosines(anchors, negatives)
    return {
        "anchor_positive_cosine": to_positive,
        "anchor_negative_cosine": to_negative,
        "cosine_margin": to_positive - to_negative,
        "triplet_accuracy": (to_positive > to_negative).astype(np.float64),
    }


class TripletCosineMetric(evaluate.Metric):
    """Triplet cosines; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        vector = datasets.Sequence(datasets.Value("float64"))
        features = datasets.Features({"predictions": vector, "positives": vector, "negatives": vector})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        positives: Sequence[Sequence[float]],
        negatives: Sequence[Sequence[float]],
    ) -> dict[str, float]:
        scores = triplet_scores(np.asarray(predictions), np.asarray(positives), np.asarray(negatives))
        return {name: float(values.mean()) for name, values in scores.items()}
