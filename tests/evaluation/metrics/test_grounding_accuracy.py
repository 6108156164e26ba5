"""Boxes: IoU by hand and by counting pixels, thresholds, unparsable answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.evaluation.metrics.grounding_accuracy import GroundingAccuracyMetric, box_iou, grounding_scores

sides = st.integers(min_value=0, max_value=12)
boxes = st.tuples(sides, sides, st.integers(1, 8), st.integers(1, 8))


@given(boxes, boxes)
def test_iou_counts_pixels(first, second):
    masks = np.zeros((2, 20, 20), dtype=bool)
    for mask, (x, y, w, h) in zip(masks, (first, second), strict=True):
        mask[y : y + h, x : x + w] = True
    assert box_iou(first, second) == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    assert box_iou(first, second) == pytest.approx(box_iou(second, first))


def test_iou_does_not_change_when_the_image_is_stretched():
    first, second = [10, 20, 30, 40], [20, 30, 30, 40]
    stretched = [[value * (3.0, 0.5)[i % 2] for i, value in enumerate(box)] for box in (first, second)]
    assert box_iou(*stretched) == pytest.approx(box_iou(first, second))


def test_thresholds_count_what_reaches_them():
    references = [[0, 0, 10, 10]] * 4
    predicted = [[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 5, 5], None]
    scores = grounding_scores(predicted, references, thresholds=(0.1, 0.5, 0.75))
    assert scores["accuracy@0.1"].tolist() == [1, 1, 0, 0]
    assert scores["accuracy@0.5"].tolist() == [1, 1, 0, 0]  # exactly a half counts
    assert scores["accuracy@0.75"].tolist() == [1, 0, 0, 0]
    assert scores["mean_iou"].tolist() == [1.0, 0.5, 0.0, 0.0]
    assert scores["unparsable_share"].tolist() == [0, 0, 0, 1]


def test_metric_reads_text():
    references = [{"bbox": [0, 0, 100, 50], "width": 200, "height": 100}] * 3
    texts = ["[0,0,499,499]", "the box is [ 0 , 0 , 4 9 9 , 4 9 9 ]", "somewhere on the left"]
    result = GroundingAccuracyMetric().compute(predictions=texts, references=references, thresholds=[0.5, 0.99])
    assert result["accuracy@0.5"] == pytest.approx(2 / 3)
    assert result["accuracy@0.99"] == pytest.approx(2 / 3)
    assert result["unparsable_share"] == pytest.approx(1 / 3)


def test_metric_takes_boxes():
    result = GroundingAccuracyMetric().compute(
        predictions=[[0.0, 0.0, 10.0, 10.0], []], references=[[0.0, 0.0, 10.0, 20.0], [1.0, 1.0, 2.0, 2.0]]
    )
    assert result == {"accuracy@0.5": 0.5, "mean_iou": 0.25, "unparsable_share": 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "predictions is empty"),
        (([None], [[0, 0, 1, 1]], [0.0]), r"thresholds=\[0.0\]"),
        (([None], [[0, 0, 1, 1]], [1.5]), "1.5 is no IoU"),
        (([None], [[0, 0, 0, 1]]), r"references\[0\].*positive size"),
        (([None], [[0, 0, 1, 0]]), r"references\[0\].*positive size"),
        (([None], [[0, 0, -1, 1]]), r"references\[0\].*positive size"),
        (([None, None], [[0, 0, 1, 1], [0, 0, 1, -1]]), r"references\[1\].*positive size"),
        (([None], [[0, 0, 1, 1, 1]]), r"references\[0\].*positive size"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        grounding_scores(*arguments)
