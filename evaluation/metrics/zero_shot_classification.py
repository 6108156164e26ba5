"""Zero-shot classification for `evaluate`: is a right class among the k with the highest score?"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Top-k accuracy over class scores, and the mean over classes of the top-1 accuracy."
CITATION = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 3.1."
INPUTS = """
Args:
    predictions (`list[list[float]]`): per image, one score per class (similarities or logits).
    references (`list[list[int]]`): per image, the classes that count as right; several where names coincide.
    top_k (`list[int]`, *optional*, defaults to `[1, 5]`)

Returns:
    `dict[str, float]`: top_K for every k, and mean_class_top_1.
"""


def ranks_of_best(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """For each row, how many irrelevant columns score at least as high as its best relevant one.

    Ties go against the model: one that gives every class the same score knows nothing, and must not be paid for it.

    Args:
        scores (`np.ndarray` (N, C)): not NaN.
        relevant (`np.ndarray` (N, C)): bool, at least one per row.

    Returns:
        `np.ndarray` (N,): 0 for the first place.
    """
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)  # (N, 1)
    return ((scores >= best) & ~relevant).sum(axis=1)


def checked_scores(
    scores: np.ndarray, labels: Sequence[Sequence[int]], top_k: Sequence[int], what: str, columns: str
) -> tuple[np.ndarray, np.ndarray]:
    """
    Scores (N, C), and which of their columns count as right, (N, C) bool.

    Args:
        what, columns (`str`): what the scores are, and of what, for messages.

    Raises:
        ValueError: no scores, NaN, a row without a right column or with one that is not there, or a k below 1.
    """
    scores = np.asarray(scores, dtype=np.float64)  # (N, C)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"predictions has shape {scores.shape}: give one row of {what} per image.")
    if np.isnan(scores).any():
        raise ValueError(f"predictions[{int(np.isnan(scores).any(axis=1).argmax())}] holds NaN.")
    if min(top_k) < 1:
        raise ValueError(f"top_k={list(top_k)} must be 1 or more.")
    relevant = np.zeros(scores.shape, dtype=bool)  # (N, C)
    for i, (row, right) in enumerate(zip(relevant, labels, strict=True)):
        if len(right) == 0 or min(right) < 0 or max(right) >= scores.shape[1]:
            raise ValueError(
                f"references[{i}]={list(right)} must name at least one of the {scores.shape[1]} {columns}."
            )
        row[list(right)] = True
    return scores, relevant


def zero_shot_scores(
    scores: np.ndarray, labels: Sequence[Sequence[int]], top_k: Sequence[int] = (1, 5)
) -> dict[str, np.ndarray]:
    """Per image: top_K for every k, each (N,) of 0 and 1.

    Args:
        scores (`np.ndarray` (N, C)): similarity of each image to each class.
        labels: per image, the indices of the classes that count as right.

    Raises:
        ValueError: no images, NaN, a missing or impossible label, or a k below 1.
    """
    scores, relevant = checked_scores(scores, labels, top_k, "class scores", "classes")  # (N, C) each
    ranks = ranks_of_best(scores, relevant)
    return {f"top_{k}": (ranks < k).astype(np.float64) for k in top_k}


class ZeroShotClassificationMetric(evaluate.Metric):
    """Top-k accuracy; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {
                "predictions": datasets.Sequence(datasets.Value("float64")),
                "references": datasets.Sequence(datasets.Value("int64")),
            }
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[int]],
        top_k: Sequence[int] = (1, 5),
    ) -> dict[str, float]:
        scores = zero_shot_scores(np.asarray(predictions), references, sorted({1, *top_k}))
        by_class: dict[tuple[int, ...], list[float]] = {}
        for classes, hit in zip(references, scores["top_1"], strict=True):
            by_class.setdefault(tuple(sorted(classes)), []).append(float(hit))
        result = {f"top_{k}": float(scores[f"top_{k}"].mean()) for k in top_k}
        return result | {"mean_class_top_1": float(np.mean([np.mean(hits) for hits in by_class.values()]))}
