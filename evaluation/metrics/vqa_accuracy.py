"""VQA accuracy for `evaluate`, over lists of human answers or soft scores."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .vqa_answers import vqa_accuracy

DESCRIPTION = "VQA accuracy with the official normalization: a full point where at least three humans agree."
CITATION = "Antol et al., VQA: Visual Question Answering, ICCV 2015; Marino et al., OK-VQA, CVPR 2019."
INPUTS = """
Args:
    predictions (`list[str]`): one answer per question.
    references: per question, the human answers (`list[str]`), or soft labels
        (`{"answers": list[str], "scores": list[float]}`, one score in [0, 1] per answer).
    always_normalize (`bool`, *optional*, defaults to `False`): normalize even where all human answers are equal.
    per_sample (`bool`, *optional*, defaults to `False`): also return `vqa_accuracy_per_sample`.

Returns:
    `dict[str, float]`: vqa_accuracy in [0, 1].
"""


class VqaAccuracyMetric(evaluate.Metric):
    """VQA accuracy; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        text, texts = datasets.Value("string"), datasets.Sequence(datasets.Value("string"))
        soft = {"answers": texts, "scores": datasets.Sequence(datasets.Value("float64"))}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            # The first that fits is taken, and a dict would pass for a list of its keys.
            features=[
                datasets.Features({"predictions": text, "references": soft}),
                datasets.Features({"predictions": text, "references": texts}),
            ],
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str] | dict[str, Any]],
        always_normalize: bool = False,
        per_sample: bool = False,
    ) -> dict[str, float | list[float]]:
        accuracies = []
        for prediction, reference in zip(predictions, references, strict=True):
            if isinstance(reference, dict):
                reference = dict(zip(reference["answers"], reference["scores"], strict=True))
            accuracies.append(vqa_accuracy(prediction, reference, always_normalize))
        result: dict[str, float | list[float]] = {"vqa_accuracy": float(np.mean(accuracies))}
        return result | {"vqa_accuracy_per_sample": accuracies} if per_sample else result
