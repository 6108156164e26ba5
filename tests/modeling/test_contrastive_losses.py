"""Contrastive losses against loops over the definition."""

import math

import pytest
import torch

from poise.modeling.contrastive_losses import CONTRASTIVE_LOSSES, infonce_loss, sigmoid_loss


@pytest.fixture
def logits():
    return torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_infonce_is_the_mean_of_both_directions(logits):
    by_image = [-math.log(math.exp(row[i]) / sum(map(math.exp, row))) for i, row in enumerate(logits.tolist())]
    by_text = [-math.log(math.exp(row[i]) / sum(map(math.exp, row))) for i, row in enumerate(logits.T.tolist())]
    expected = (sum(by_image) / 5 + sum(by_text) / 5) / 2
    assert infonce_loss(logits).item() == pytest.approx(expected, rel=1e-12)


def test_sigmoid_asks_every_pair_a_question_of_its_own(logits):
    expected = 0.0
    for i, row in enumerate(logits.tolist()):
        for j, value in enumerate(row):
            expected -= math.log(1 / (1 + math.exp(-value if i == j else value)))
    assert sigmoid_loss(logits).item() == pytest.approx(expected / 5, rel=1e-12)


@pytest.mark.parametrize("name", sorted(CONTRASTIVE_LOSSES))
def test_own_pairs_alone_are_the_default(name, logits):
    loss = CONTRASTIVE_LOSSES[name]
    torch.testing.assert_close(loss(logits, torch.eye(5, dtype=torch.bool)), loss(logits))


@pytest.mark.parametrize("name", sorted(CONTRASTIVE_LOSSES))
def test_a_text_that_is_true_of_two_images_draws_both(name):
    # Rows 0 and 1 hold the same text: with `matches`, making both similar to it lowers the loss; without, it does not.
    matches = torch.eye(3, dtype=torch.bool)
    matches[0, 1] = matches[1, 0] = True
    apart, together = 4 * torch.eye(3), 4 * matches.float()
    loss = CONTRASTIVE_LOSSES[name]
    assert loss(together, matches) < loss(apart, matches)
    assert loss(together) > loss(apart)


def test_matches_need_not_be_symmetric(logits):
    """Text 2 is also true of image 0, and text 0 not of image 2: every image and text has targets of its own."""
    matches = torch.eye(5, dtype=torch.bool)
    matches[0, 2] = matches[0, 3] = True
    expected = 0.0
    for scores, true in ((logits, matches), (logits.T, matches.T)):
        for row, own in zip(scores.log_softmax(1), true, strict=True):
            expected -= float(row[own].mean()) / 5 / 2
    assert infonce_loss(logits, matches).item() == pytest.approx(expected, rel=1e-12)
    expected = -float(torch.nn.functional.logsigmoid(torch.where(matches, logits, -logits)).sum()) / 5
    assert sigmoid_loss(logits, matches).item() == pytest.approx(expected, rel=1e-12)
