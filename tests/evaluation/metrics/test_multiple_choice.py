"""Multiple choice by log-likelihood."""

import math

import numpy as np
import pytest

from poise.evaluation.metrics.multiple_choice import MultipleChoiceMetric, multiple_choice_scores


def test_by_hand():
    scores = multiple_choice_scores([[-1.0, -2.0, -3.0], [-4.0, -6.0]], [0, 1], num_tokens=[[1, 1, 1], [1, 3]])
    # The second's right choice is less likely as a whole, more likely per token: -6 / 3 against -4.
    assert scores["accuracy"].tolist() == [1.0, 0.0]
    assert scores["accuracy_per_token"].tolist() == [1.0, 1.0]
    total = math.exp(-1) + math.exp(-2) + math.exp(-3)
    assert scores["correct_probability"][0] == pytest.approx(math.exp(-1) / total)


def test_a_tie_is_wrong():
    assert multiple_choice_scores([[-1.0, -1.0]], [0])["accuracy"].tolist() == [0.0]


def test_impossible_choices():
    scores = multiple_choice_scores([[-np.inf, -5.0], [-np.inf, -np.inf]], [1, 0])
    assert scores["accuracy"].tolist() == [1.0, 0.0]
    assert scores["correct_probability"].tolist() == [1.0, 0.5]


def test_metric():
    metric = MultipleChoiceMetric()
    result = metric.compute(predictions=[[-1.0, -2.0], [-3.0, -1.0, -2.0]], references=[0, 2])
    assert result["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "predictions is empty"),
        (([[float("nan"), 1.0]], [0]), r"predictions\[0\].*not NaN"),
        (([[]], [0]), r"predictions\[0\]"),
        (([[-1.0, -2.0]], [2]), r"references\[0\]=2"),
        (([[-1.0, -2.0]], [0], [[1, 0]]), r"num_tokens\[0\]"),
        (([[-1.0, -2.0]], [0], [[1]]), r"num_tokens\[0\]"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        multiple_choice_scores(*arguments)
