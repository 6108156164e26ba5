"""POPE by hand."""

import pytest

from poise.evaluation.metrics.pope import NO, YES, PopeMetric, read_yes_no


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("yes", YES),
        ("Yes, there is a dog.", YES),
        ("No", NO),
        ("no , there is no dog", NO),
        ("There is not.", NO),
        ("It isn't there.", NO),
        ("I would say yes", YES),
        ("", None),
        ("a dog", None),
        ("nothing", None),
        ("eyes", None),
        ("maybe yes maybe no", None),
    ],
)
def test_reading_an_answer(answer, says):
    assert read_yes_no(answer) == says


def test_published_rule_says_yes_to_everything_without_no():
    assert [read_yes_no(answer, published_rule=True) for answer in ("", "a dog", "No, it is not.")] == [YES, YES, NO]
    assert read_yes_no("There is a dog. It is not big.", published_rule=True) == YES


def test_scores_by_hand():
    predictions = ["yes", "yes", "no", "dog", "yes", "no", "cat"]
    references = ["yes", "yes", "yes", "yes", "no", "no", "no"]
    scores = PopeMetric().compute(predictions=predictions, references=references)
    # 2 found, 2 missed (one by nonsense), 1 invented, 1 rightly denied, 1 nonsense about an absent object.
    assert scores == pytest.approx(
        {
            "accuracy": 3 / 7,
            "precision": 2 / 3,
            "recall": 2 / 4,
            "f1": 4 / 7,
            "yes_ratio": 3 / 7,
            "unparsable_share": 2 / 7,
        }
    )


def test_always_yes_has_full_recall_and_shows_itself():
    scores = PopeMetric().compute(predictions=["yes"] * 4, references=["yes", "no", "yes", "no"])
    assert (scores["recall"], scores["precision"], scores["yes_ratio"]) == (1.0, 0.5, 1.0)


def test_never_yes_divides_by_nothing():
    scores = PopeMetric().compute(predictions=["no", "no"], references=["yes", "no"])
    assert (scores["precision"], scores["f1"], scores["accuracy"]) == (0.0, 0.0, 0.5)


def test_bad_reference():
    with pytest.raises(ValueError, match=r"references\[1\]='maybe'"):
        PopeMetric().compute(predictions=["yes", "no"], references=["yes", "maybe"])
