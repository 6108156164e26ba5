"""Grounding for `evaluate`: does the predicted box overlap the described object's box?"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from poise.processing.grounding_text import text_to_box  # absolute: `evaluate` copies this file elsewhere

DESCRIPTION = "Share of boxes whose intersection over union (IoU) with the true box reaches a threshold, and mean IoU."
CITATION = (
    "Kazemzadeh et al., ReferItGame, EMNLP 2014; Yu et al., Modeling Context in Referring Expressions, ECCV 2016."
)
INPUTS = """
Args:
    predictions: per expression, generated text with a box in it (`str`, "[x1,y1,x2,y2]" in 0-999 of the image's
        sides), or a box (`list[float]`, [x, y, w, h] in pixels; an empty list where there is none).
    references: per expression, for text `{"bbox": [x, y, w, h], "width": int, "height": int}` in pixels of the image;
        for boxes `[x, y, w, h]`.
    thresholds (`list[float]`, *optional*, defaults to `[0.5]`): IoU values in (0, 1] that count as found.

Returns:
    `dict[str, float]`: accuracy@T for every threshold, mean_iou, unparsable_share. Without a box the IoU is 0.
"""

Box = Sequence[float]


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes [x, y, w, h]; 0 where a box has no area."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = first, second
    if min(w1, h1, w2, h2) <= 0:
        return 0.0
    width = min(x1 + w1, x2 + w2) - max(x1, x2)
    height = min(y1 + h1, y2 + h2) - max(y1, y2)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (w1 * h1 + w2 * h2 - width * height)


def threshold_name(threshold: float) -> str:
    """Key of the accuracy at an IoU threshold, such as "accuracy@0.5"."""
    return f"accuracy@{threshold:g}"


def grounding_scores(
    boxes: Sequence[Box | None], references: Sequence[Box], thresholds: Sequence[float] = (0.5,)
) -> dict[str, np.ndarray]:
    """Per expression: accuracy@T for every threshold, mean_iou (the IoU), unparsable_share (1 without box); each (N,).

    Args:
        boxes: predicted [x, y, w, h], or `None` where the text held no box.
        references: true [x, y, w, h] in the same units.

    Raises:
        ValueError: no boxes, a threshold outside (0, 1], or a reference without area.
    """
    if len(boxes) == 0:
        raise ValueError("predictions is empty: give at least one box.")
    outside = [threshold for threshold in thresholds if not 0 < threshold <= 1]
    if outside:
        raise ValueError(f"thresholds={list(thresholds)}: {outside[0]} is no IoU in (0, 1].")
    for i, reference in enumerate(references):
        if len(reference) != 4 or not (reference[2] > 0 and reference[3] > 0):
            raise ValueError(f"references[{i}]={list(reference)} must be [x, y, w, h] with a positive size.")
    iou = np.array(
        [0.0 if box is None else box_iou(box, reference) for box, reference in zip(boxes, references, strict=True)]
    )  # (N,)
    scores = {threshold_name(threshold): (iou >= threshold).astype(np.float64) for threshold in thresholds}
    return scores | {"mean_iou": iou, "unparsable_share": np.array([float(box is None) for box in boxes])}


class GroundingAccuracyMetric(evaluate.Metric):
    """Grounding accuracy; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        box = datasets.Sequence(datasets.Value("float64"))
        sized = {"bbox": box, "width": datasets.Value("int64"), "height": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": datasets.Value("string"), "references": sized}),
                datasets.Features({"predictions": box, "references": box}),
            ],
        )

    def _compute(
        self,
        predictions: Sequence[str | Box],
        references: Sequence[Any],
        thresholds: Sequence[float] = (0.5,),
    ) -> dict[str, float]:
        boxes: list[Box | None] = []
        true_boxes: list[Box] = []
        for prediction, reference in zip(predictions, references, strict=True):
            if isinstance(prediction, str):
                boxes.append(text_to_box(prediction, reference["width"], reference["height"]))
                true_boxes.append(reference["bbox"])
            else:
                boxes.append(prediction if len(prediction) == 4 else None)
                true_boxes.append(reference)
        scores = grounding_scores(boxes, true_boxes, thresholds)
        return {name: float(values.mean()) for name, values in scores.items()}
