"""Wrong answers are told apart: those of the prior, and others."""

import pytest

from poise.training.preference.prior_following import PriorFollowing


def row(number, prediction, answer="red", prior="blue"):
    return {
        "id": str(number), "task": "vqa", "question": "?", "answers": [answer], "prior_answer": prior,
        "prediction": prediction, "finished": True,
    }  # fmt: skip


def test_shares_of_prior_following_and_other_wrong_answers():
    said = ["red", "Blue.", "blue", "green", "", "red"]
    rows = [row(i, text) for i, text in enumerate(said)] + [row(9, "blue", answer="blue"), row(10, "x", prior=None)]
    metrics = PriorFollowing(resamples=0).score(rows)
    assert metrics["prior_following"] == pytest.approx(2 / 7)
    assert metrics["other_wrong"] == pytest.approx(2 / 7)
    assert metrics["vqa_accuracy"] == pytest.approx(3 / 8)


def test_rows_remember_the_prior():
    record = {"id": "a", "task": "vqa", "image": None, "question": "?", "answers": ["red"]}
    assert PriorFollowing().row({**record, "metadata": {"prior_answer": "blue"}})["prior_answer"] == "blue"
    assert PriorFollowing().row(record)["prior_answer"] is None
