"""VQA accuracy: stated cases, the official quirks, soft scores."""

import json

import pytest

from poise.evaluation.metrics.vqa_accuracy import VqaAccuracyMetric
from poise.evaluation.metrics.vqa_answers import normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Dog.", "dog"),
        ("two dogs", "2 dogs"),
        ("an apple, a pear", "apple pear"),
        ("red/white", "red white"),
        ("left , right", "left right"),
        ("1,500", "1500"),
        ("3.5", "3.5"),
        ("dont know", "don't know"),
        ("I couldnt've", "i couldn't've"),
        ("none", "0"),
        ("what?", "what"),
        ("line\nbreak\tand tab", "line break and tab"),
        ("the", ""),
        ("...", ""),
    ],
)
def test_normalization(answer, normal):
    assert normalize_answer(answer) == normal


def test_stated_normalization_cases(shared_folder):
    cases = json.loads((shared_folder / "metric_reference/vqa_accuracy_cases/stated_cases.json").read_text())
    assert len(cases["normalization"]) == 48
    for case in cases["normalization"]:
        assert normalize_answer(case["answer"]) == case["expected"] == case["official_code_gives"]


def test_stated_accuracy_cases(shared_folder):
    cases = json.loads((shared_folder / "metric_reference/vqa_accuracy_cases/stated_cases.json").read_text())
    assert len(cases["accuracy"]) == 15
    for case in cases["accuracy"]:
        assert vqa_accuracy(case["answer"], case["gt_answers"]) == pytest.approx(case["expected"], abs=1e-9), case


def test_values_of_the_official_code_on_aokvqa(shared_folder):
    reference = json.loads((shared_folder / "metric_reference/vqa_accuracy_cases/dev_aokvqa_computed.json").read_text())
    assert len(reference["items"]) == 63
    for item in reference["items"]:
        accuracy = vqa_accuracy(item["answer"], item["gt_answers"])
        assert accuracy == pytest.approx(item["official_code_gives"], abs=1e-9), item


def test_accuracy_by_hand():
    humans = ["red"] * 2 + ["blue"] * 8
    # Leaving out a "red" leaves one other: 1/3, twice; leaving out a "blue" leaves two: 2/3, eight times.
    assert vqa_accuracy("red", humans) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("Blue.", humans) == 1.0
    assert vqa_accuracy("green", humans) == 0.0


def test_substrings_do_not_match():
    assert vqa_accuracy("not red", ["red"] * 5 + ["blue"] * 5) == 0.0
    assert vqa_accuracy("re", ["red"] * 5 + ["blue"] * 5) == 0.0


def test_official_quirk_unanimous_answers_are_not_normalized():
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes.", ["yes"] * 10, always_normalize=True) == 1.0
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0
    # Ten times the same leaves nine others.
    assert vqa_accuracy("yes", ["yes"] * 10) == 1.0


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
@pytest.mark.parametrize("answers", [["the", "dog", "?"], [""] * 10, ["", "a"], {"the": 1.0}, {"": 1.0}])
def test_an_empty_answer_never_matches(empty, answers):
    assert vqa_accuracy(empty, answers) == 0.0


def test_answers_that_normalization_empties_match_only_themselves():
    humans = ["a"] * 4 + ["b"] * 6  # the letter
    assert vqa_accuracy("A", humans) == 1.0
    assert vqa_accuracy("?", humans) == 0.0


def test_few_answers():
    assert vqa_accuracy("Red.", ["red"]) == 1.0
    assert vqa_accuracy("red", ["red", "red", "blue"]) == pytest.approx((2 * 1 / 2 + 1) / 3)


def test_soft_scores():
    scores = {"race": 1.0, "racing": 0.6, "a race!": 0.3}
    assert vqa_accuracy("Race", scores) == 1.0
    assert vqa_accuracy("racing.", scores) == pytest.approx(0.6)
    assert vqa_accuracy("motocross", scores) == 0.0


def test_bad_input():
    with pytest.raises(ValueError, match="answers is empty"):
        vqa_accuracy("red", [])
    with pytest.raises(ValueError, match=r"answers\['red'\]=1.2"):
        vqa_accuracy("red", {"red": 1.2})


def test_metric_takes_lists_and_soft_scores():
    metric = VqaAccuracyMetric()
    lists = metric.compute(predictions=["red", ""], references=[["red"] * 10, ["blue"] * 10], per_sample=True)
    assert lists == {"vqa_accuracy": 0.5, "vqa_accuracy_per_sample": [1.0, 0.0]}
    soft = metric.compute(
        predictions=["race", "car"],
        references=[
            {"answers": ["race", "run"], "scores": [1.0, 0.6]},
            {"answers": ["truck", "car"], "scores": [1, 0.5]},
        ],
    )
    assert soft == {"vqa_accuracy": 0.75}
