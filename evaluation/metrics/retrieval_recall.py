"""Retrieval for `evaluate`: is a matching text among the k nearest of an image, and the image among a text's?"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .zero_shot_classification import checked_scores, ranks_of_best

DESCRIPTION = "Recall@k from images to texts and from texts to images."
CITATION = "Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, CVPR 2015, section 4.1."
INPUTS = """
Args:
    predictions (`list[list[float]]`): per image, its similarity to every text.
    references (`list[list[int]]`): per image, the indices of its texts. Every text belongs to one image or more.
    top_k (`list[int]`, *optional*, defaults to `[1, 5, 10]`)

Returns:
    `dict[str, float]`: image_to_text_recall@K (one of the image's texts is among the first K) and
    text_to_image_recall@K for every k, and mean_recall over all of them.
"""


def retrieval_scores(
    similarity: np.ndarray, texts_of_image: Sequence[Sequence[int]], top_k: Sequence[int] = (1, 5, 10)
) -> dict[str, np.ndarray]:
    """Per query: image_to_text_recall@K, each (N images,), and text_to_image_recall@K, each (M texts,), of 0 and 1.

    Ties go against the model.

    Args:
        similarity (`np.ndarray` (N, M)): image by text.
        texts_of_image: per image, the indices of its texts.

    Raises:
        ValueError: empty or NaN similarities, an image without texts, a text without an image, a k below 1.
    """
    similarity, matches = checked_scores(similarity, texts_of_image, top_k, "text similarities", "texts")  # (N, M) each
    orphans = np.flatnonzero(~matches.any(axis=0))
    if orphans.size:
        raise ValueError(f"references: text {orphans[0]} belongs to no image; leave it out of the similarities.")
    image_ranks = ranks_of_best(similarity, matches)
    text_ranks = ranks_of_best(similarity.T, matches.T)
    return {f"image_to_text_recall@{k}": (image_ranks < k).astype(np.float64) for k in top_k} | {
        f"text_to_image_recall@{k}": (text_ranks < k).astype(np.float64) for k in top_k
    }


class RetrievalRecallMetric(evaluate.Metric):
    """Recall@k both ways; see `INPUTS`."""

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
        top_k: Sequence[int] = (1, 5, 10),
    ) -> dict[str, float]:
        scores = retrieval_scores(np.asarray(predictions), references, top_k)
        result = {name: float(values.mean()) for name, values in scores.items()}
        return result | {"mean_recall": float(np.mean(list(result.values())))}
