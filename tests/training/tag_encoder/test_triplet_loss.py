"""Negatives are chosen as a loop over the definition would choose them; the loss is torch's own."""

import pytest
import torch
from torch.nn import functional as F

from poise.training.tag_encoder.model import choose_negatives, triplet_margin_loss

pytestmark = pytest.mark.numerics


def batch(seed=0, images=9, captions=2, dim=6):
    """Anchors, positives (B, D), captions (M, D) and which belong to others (B, M)."""
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(images * captions, dim, generator=generator), dim=-1)
    anchors = F.normalize(torch.randn(images, dim, generator=generator), dim=-1)
    owner = torch.arange(images).repeat_interleave(captions)
    return anchors, rows[::captions], rows, owner != torch.arange(images)[:, None]


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("margin", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_semi_hard_negatives_follow_their_definition(p, margin, seed):
    anchors, positives, captions, allowed = batch(seed)
    chosen = choose_negatives(anchors, positives, captions, allowed, "semi_hard", margin, p)
    for row, anchor in enumerate(anchors):
        to_positive = torch.dist(anchor, positives[row], p)
        others = [(float(torch.dist(anchor, captions[i], p)), i) for i in allowed[row].nonzero()[:, 0].tolist()]
        inside = [(d, i) for d, i in others if to_positive < d < to_positive + margin]
        assert int(chosen[row]) == (min(inside)[1] if inside else max(others)[1])


def test_random_negatives_are_others_and_all_of_them_in_time():
    anchors, positives, captions, allowed = batch()
    torch.manual_seed(0)
    seen = torch.zeros_like(allowed)
    for _ in range(300):
        chosen = choose_negatives(anchors, positives, captions, allowed, "random", 1.0)
        assert allowed.gather(1, chosen[:, None]).all()
        seen[torch.arange(len(anchors)), chosen] = True
    assert seen.equal(allowed)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_the_loss_is_torchs(p):
    anchors, positives, captions, allowed = batch()
    chosen = choose_negatives(anchors, positives, captions, allowed, "semi_hard", 0.4, p)
    expected = torch.nn.TripletMarginLoss(margin=0.4, p=p)(anchors, positives, captions[chosen])
    found = triplet_margin_loss(anchors, positives, captions, allowed, "semi_hard", 0.4, p)
    torch.testing.assert_close(found, expected)
    assert expected > 0


def test_a_batch_without_another_image_and_an_unknown_kind_are_refused():
    anchors, positives, captions, allowed = batch(images=1)
    with pytest.raises(ValueError, match="no caption of another image.*dataloader_drop_last"):
        choose_negatives(anchors, positives, captions, allowed, "random", 1.0)
    with pytest.raises(ValueError, match="'hardest' is not known.*semi_hard"):
        choose_negatives(*batch(), "hardest", 1.0)
