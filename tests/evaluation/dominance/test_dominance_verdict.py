"""The verdict says what the figures say."""

import pytest

from poise.evaluation.dominance.report import dominant, verdict

PLAYERS = ("image", "tags", "question")


def coalition_scores(image, tags, question, width=0.02, **more):
    values = {"image": image, "tags": tags, "question": question}
    scores = {"accuracy": 0.9, "samples": 100.0}
    for name, value in values.items():
        scores |= {
            f"swap_accuracy_value_{name}": value,
            f"swap_accuracy_value_{name}_low": value - width,
            f"swap_accuracy_value_{name}_high": value + width,
        }
    for some in ("tags+question", "image+question", "image+tags"):
        scores[f"swap_accuracy_{some}"] = 0.4
    return {**scores, **more}


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ((0.5, 0.1, 0.3), 0.02, "image"),
        ((0.1, 0.5, 0.3), 0.02, "tags"),
        ((0.4, 0.3, 0.1), 0.02, "balanced"),  # less than twice as much
        ((0.3, 0.1, 0.1), 0.12, "balanced"),  # the intervals meet
        ((0.01, 0.0, 0.6), 0.02, "none"),  # the question is not what is compared
    ],
)
def test_who_dominates(values, width, expected):
    assert dominant(coalition_scores(*values, width=width), PLAYERS) == expected


def test_where_no_input_helps_those_that_are_compared_are_named():
    for players, named in ((PLAYERS, "image nor tags"), (("image", "question"), "image nor question")):
        scores = coalition_scores(0.0, 0.0, 0.0, swap_accuracy_image=0.4, swap_accuracy_question=0.4)
        assert verdict(scores, None, None, players)[0].startswith(f"Neither {named} make the answers better")


def test_image_against_question_where_there_are_no_tags():
    assert dominant(coalition_scores(0.1, 0.0, 0.6), ("image", "question")) == "question"


def test_sentences_hold_their_figures():
    scores = coalition_scores(
        0.5, 0.1, 0.3, swap_accuracy_share_image=0.56, swap_accuracy_share_tags=0.11, conflict_accuracy=0.7,
        conflict_prior=0.2, conflict_samples=80.0,
    )  # fmt: skip
    attention = {
        "mdi": 3.25,
        "tokens_image": 36.0,
        "tokens_first": 1.0,
        "attention_image": 0.2,
        "aei_image": 0.5,
        "mdi_without_first": 1.5,
    }
    router = {
        "clean_image_weight": 0.99,
        "clean_text_weight": 0.9,
        "blank_image_weight": 0.01,
        "blank_text_weight": 0.8,
    }
    sentences = verdict(scores, attention, router, PLAYERS)
    assert sentences[0].startswith("The image dominates the answers") and "image 56%, tags 11%" in sentences[0]
    assert "0.90 with everything right, 0.40 with the image swapped" in sentences[1]
    assert "(80 samples) 70% of the answers are right and 20% follow the prior" in sentences[2]
    assert "3.25 times" in sentences[3] and "1.50 times without the first position" in sentences[3]
    assert "least the image under blank (0.01)" in sentences[4]
    assert verdict(None, {"tokens_image": 0.0}, None, PLAYERS) == [
        "Attention: the prompt has no image or no text tokens, so MDI is not defined."
    ]
