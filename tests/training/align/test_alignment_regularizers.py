"""FuseMix keeps pairs pairs; STRUCTURE is nothing for the same neighbourhoods and grows with their loss."""

import math

import pytest
import torch

from poise.training.align.regularizers import fuse_mix, jensen_shannon, structure_regularizer
from poise.training.align.trainer import warmed_up

pytestmark = pytest.mark.numerics


def features(lengths=(2, 4, 3, 4)):
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[place < length for place in range(4)] for length in lengths]).long()
    return {
        "vision_tokens": torch.randn(4, 3, 5, generator=generator),
        "vision_cls": torch.randn(4, 5, generator=generator),
        "text_tokens": torch.randn(4, 4, 6, generator=generator) * mask[..., None],
        "text_mask": mask,
    }


def test_both_modalities_are_mixed_with_the_same_partner_by_the_same_share():
    torch.manual_seed(3)
    before = features(lengths=(4, 4, 4, 4))
    # Texts are a linear image of the images, and still are after mixing: a pair stays a pair.
    weights = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    before["text_tokens"] = (before["vision_cls"] @ weights)[:, None].expand(4, 4, 6)
    after, partner = fuse_mix(before, alpha=1.0)
    torch.testing.assert_close(after["text_tokens"][:, 0], after["vision_cls"] @ weights)
    share = (after["vision_cls"] - before["vision_cls"][partner]) / (
        before["vision_cls"] - before["vision_cls"][partner]
    ).where(partner[:, None] != torch.arange(4)[:, None], torch.nan)
    share = share[~share.isnan()]
    assert share.numel() and 0 < share.mean() < 1
    torch.testing.assert_close(share, share.mean().expand_as(share), rtol=1e-3, atol=1e-3)


def test_a_token_of_only_one_text_stays_itself_with_a_smaller_weight():
    torch.manual_seed(5)
    before = features()
    before["text_tokens"] += 100 * (1 - before["text_mask"])[..., None]  # what padding holds does not count
    after, partner = fuse_mix(before, alpha=1.0)
    for row, other in enumerate(partner.tolist()):
        for place in range(4):
            here, there = bool(before["text_mask"][row, place]), bool(before["text_mask"][other, place])
            weight = after["text_mask"][row, place]
            if here and there:
                assert weight == pytest.approx(1.0)
            elif here or there:
                source = row if here else other
                assert 0 < weight < 1
                torch.testing.assert_close(after["text_tokens"][row, place], before["text_tokens"][source, place])
            else:
                assert weight == 0


def test_jensen_shannon_by_hand():
    first, second = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.5, 0.5]])
    # Half of the mass is common: JS = log 2 / 2.
    assert jensen_shannon(first, second).item() == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert jensen_shannon(first, first).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("levels", [1, 3])
def test_structure_sees_neighbourhoods_and_nothing_else(levels):
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(12, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    assert structure_regularizer(original, 7 * original @ rotation, levels).item() == pytest.approx(0.0, abs=1e-5)
    other = structure_regularizer(original, torch.randn(12, 6, generator=generator), levels)
    assert 0.01 < other.item() <= math.log(2)


def test_its_gradient_brings_the_neighbourhoods_back():
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(12, 6, generator=generator)
    aligned = torch.randn(12, 6, generator=generator, requires_grad=True)
    optimizer = torch.optim.Adam([aligned], lr=0.05)
    first = structure_regularizer(original, aligned, temperature=0.1).item()
    published = structure_regularizer(original, aligned, temperature=0.07).item()
    assert structure_regularizer(original, aligned).item() == pytest.approx(published) != pytest.approx(first)
    for _ in range(100):
        optimizer.zero_grad()
        structure_regularizer(original, aligned, temperature=0.1).backward()
        optimizer.step()
    assert structure_regularizer(original, aligned, temperature=0.1).item() < first / 5


def test_structure_is_the_sum_that_the_paper_writes():
    """Section 4, spelt out: unit vectors, centred; softmax of similarities; powers; JS of each level, divided by it."""
    generator = torch.Generator().manual_seed(4)
    original, aligned = torch.randn(7, 5, generator=generator) + 1, torch.randn(7, 3, generator=generator) + 1
    rows = []
    for vectors in (original, aligned):
        unit = vectors / vectors.norm(dim=1, keepdim=True)
        unit = unit - unit.mean(0, keepdim=True)
        similar = torch.exp(unit @ unit.T / 0.2)
        rows.append(similar / similar.sum(1, keepdim=True))
    expected = 0.0
    for level in (1, 2, 3):
        one, other = (torch.linalg.matrix_power(matrix, level) for matrix in rows)
        middle = (one + other) / 2
        divergence = (one * (one / middle).log() + other * (other / middle).log()).sum(1).mean() / 2
        expected += divergence / level / 3
    found = structure_regularizer(original, aligned, levels=3, temperature=0.2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_weight_of_structure_grows_evenly():
    assert [warmed_up(step, 500) for step in (0, 1, 250, 500, 900)] == [0, 1 / 500, 0.5, 1, 1]
    assert warmed_up(0, 0) == 1
