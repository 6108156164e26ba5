"""Shapley values: games whose answer is known."""

import numpy as np
import pytest

from poise.evaluation.dominance.coalitions import coalitions, shapley_values

PLAYERS = ("image", "tags", "question")


def game(worth):
    return {some: np.array([worth(set(some))], dtype=float) for some in coalitions(PLAYERS)}


def test_all_subsets_the_smallest_first():
    found = coalitions(PLAYERS)
    assert len(found) == len(set(found)) == 8 and found[0] == () and found[-1] == PLAYERS


def test_what_adds_up_is_shared_as_it_adds_up():
    worth = {"image": 0.5, "tags": 0.25, "question": -0.125}
    found = shapley_values(game(lambda some: sum(worth[name] for name in some)), PLAYERS)
    assert {name: float(value[0]) for name, value in found.items()} == pytest.approx(worth)


def test_partners_share_and_idlers_get_nothing():
    """Only image and question together are worth something."""
    found = shapley_values(game(lambda some: float({"image", "question"} <= some)), PLAYERS)
    assert found["image"] == pytest.approx(0.5) and found["question"] == pytest.approx(0.5)
    assert found["tags"] == pytest.approx(0)


def test_gloves():
    """A question with an image or with tags is worth 1: the textbook's glove game, 2/3 to the scarce side."""
    found = shapley_values(game(lambda some: float("question" in some and len(some) > 1)), PLAYERS)
    assert found["question"] == pytest.approx(2 / 3) and found["image"] == pytest.approx(1 / 6)


def test_shares_add_up_for_every_sample():
    rng = np.random.default_rng(0)
    values = {some: rng.random(5) for some in coalitions(PLAYERS)}
    found = shapley_values(values, PLAYERS)
    np.testing.assert_allclose(sum(found.values()), values[PLAYERS] - values[()])


def test_a_missing_coalition_is_named():
    values = game(len)
    del values["image", "question"]
    with pytest.raises(ValueError, match="values lacks the coalition image\\+question: give all 8"):
        shapley_values(values, PLAYERS)
