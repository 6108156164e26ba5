"""Zero-shot classification, retrieval and triplets: what scores and similarities are worth."""

import numpy as np
import pytest

from poise.evaluation.metrics.retrieval_recall import RetrievalRecallMetric, retrieval_scores
from poise.evaluation.metrics.triplet_cosine import TripletCosineMetric, triplet_scores
from poise.evaluation.metrics.zero_shot_classification import ZeroShotClassificationMetric, zero_shot_scores


def test_top_k_by_sorting():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(50, 12)), generator.integers(12, size=50)
    order = np.argsort(-scores, axis=1)
    result = zero_shot_scores(scores, [[label] for label in labels], top_k=(1, 3, 5))
    for k in (1, 3, 5):
        assert result[f"top_{k}"].tolist() == [
            float(label in row[:k]) for label, row in zip(labels, order, strict=True)
        ]


def test_ties_do_not_pay():
    constant = zero_shot_scores(np.zeros((4, 10)), [[i] for i in range(4)])
    assert constant["top_1"].sum() == constant["top_5"].sum() == 0
    recall = retrieval_scores(np.zeros((6, 6)), [[i] for i in range(6)], top_k=(1, 5))
    assert sum(values.sum() for values in recall.values()) == 0


def test_names_that_coincide_are_both_right():
    scores = [[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]]
    assert zero_shot_scores(np.array(scores), [[0, 1], [0, 1]], top_k=(1,))["top_1"].tolist() == [1.0, 1.0]


def test_classification_metric_and_mean_over_classes():
    result = ZeroShotClassificationMetric().compute(
        predictions=[[2.0, 1.0, 0.0]] * 4, references=[[0], [0], [0], [2]], top_k=[1, 2]
    )
    # Class 0 always right, class 2 never: 3/4 of the images, 1/2 of the classes.
    assert result == {"top_1": 0.75, "top_2": 0.75, "mean_class_top_1": 0.5}


def test_retrieval_by_hand():
    # Two images with two texts each. Image 0's best text is its own; image 1's is image 0's second.
    similarity = np.array([[0.9, 0.2, 0.1, 0.3], [0.1, 0.8, 0.5, 0.4]])
    scores = retrieval_scores(similarity, [[0, 1], [2, 3]], top_k=(1, 2))
    assert scores["image_to_text_recall@1"].tolist() == [1, 0]
    assert scores["image_to_text_recall@2"].tolist() == [1, 1]
    assert scores["text_to_image_recall@1"].tolist() == [1, 0, 1, 1]
    assert scores["text_to_image_recall@2"].tolist() == [1, 1, 1, 1]


def test_retrieval_metric():
    similarity = np.eye(3).tolist()
    result = RetrievalRecallMetric().compute(predictions=similarity, references=[[0], [1], [2]], top_k=[1])
    assert result == {"image_to_text_recall@1": 1.0, "text_to_image_recall@1": 1.0, "mean_recall": 1.0}


def test_triplets_by_hand():
    anchors = np.array([[1.0, 0.0], [0.0, 2.0]])
    positives = np.array([[1.0, 1.0], [0.0, 1.0]])
    negatives = np.array([[0.0, 1.0], [0.0, 5.0]])
    scores = triplet_scores(anchors, positives, negatives)
    assert scores["anchor_positive_cosine"] == pytest.approx([2**-0.5, 1.0])
    assert scores["anchor_negative_cosine"] == pytest.approx([0.0, 1.0])
    assert scores["triplet_accuracy"].tolist() == [1.0, 0.0]  # equally near is not nearer


def test_triplet_metric_and_zero_vectors():
    result = TripletCosineMetric().compute(
        predictions=[[1.0, 0.0], [0.0, 0.0]],
        positives=[[1.0, 0.0], [1.0, 0.0]],
        negatives=[[-1.0, 0.0], [1.0, 1.0]],
    )
    assert result == {
        "anchor_positive_cosine": 0.5,
        "anchor_negative_cosine": -0.5,
        "cosine_margin": 1.0,
        "triplet_accuracy": 0.5,
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zero_shot_scores(np.zeros((0, 3)), []), "shape"),
        (lambda: zero_shot_scores(np.array([[np.nan, 0.0]]), [[0]]), r"predictions\[0\] holds NaN"),
        (lambda: zero_shot_scores(np.zeros((1, 2)), [[2]]), r"references\[0\]"),
        (lambda: zero_shot_scores(np.zeros((1, 2)), [[0]], top_k=(0,)), "top_k"),
        (lambda: retrieval_scores(np.zeros((1, 2)), [[0]]), "text 1 belongs to no image"),
        (lambda: retrieval_scores(np.zeros((2, 2)), [[0, 1], []]), r"references\[1\]"),
        (lambda: triplet_scores(np.zeros((1, 2)), np.zeros((1, 3)), np.zeros((1, 2))), "one shape"),
        (lambda: triplet_scores(np.ones((1, 2)), np.ones((1, 2)), np.full((1, 2), np.inf)), "negatives holds"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
