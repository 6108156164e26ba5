"""The channel router against slow references written here: one sample at a time, with a real SVD."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Sample, batch_of, image_inputs, open_model, tiny_config

from poise.modeling.channel_router import ChannelRouter, channel_scores, evenly_spaced, lowest_channels
from poise.modeling.streams import Streams

pytestmark = pytest.mark.numerics


def random_tokens(shape, seed=0):
    """Tokens (N, T, D) with unequal channel variances and a random mean."""
    generator = torch.Generator().manual_seed(seed)
    d = shape[-1]
    return torch.randn(shape, generator=generator) * torch.linspace(0.1, 3.0, d) + torch.randn(d, generator=generator)


def scores_by_svd(tokens, rank):
    """S_d of one sample (T, D): the paper's formula, word by word."""
    centred = tokens - tokens.mean(0)
    _, sigma, v = torch.linalg.svd(centred.double(), full_matrices=False)
    return sum(sigma[i] ** 2 * v[i] ** 2 for i in range(min(rank, len(sigma)))).float()


@pytest.mark.parametrize("shape", [(3, 9, 16), (3, 40, 16), (2, 16, 16)])
def test_untruncated_scores_are_token_count_times_variance(shape):
    tokens = random_tokens(shape)
    expected = shape[1] * tokens.var(1, unbiased=False)
    for rank in (None, 64):
        torch.testing.assert_close(channel_scores(tokens, rank=rank), expected, rtol=1e-4, atol=1e-4)
    assert ChannelRouter(tiny_config(router_type="channel")).rank is None


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("shape", [(3, 9, 24), (3, 40, 12), (2, 12, 12)])
def test_truncated_scores_are_those_of_an_svd(shape, rank):
    tokens = random_tokens(shape)
    scores = channel_scores(tokens, rank=rank)
    for place in range(shape[0]):
        torch.testing.assert_close(scores[place], scores_by_svd(tokens[place], rank), rtol=1e-3, atol=1e-3)


@given(st.integers(1, 20), st.integers(2, 20), st.integers(1, 20), st.integers(0, 1000))
def test_scores_equal_an_svd_for_any_shape(t, d, rank, seed):
    tokens = random_tokens((1, t, d), seed)
    scores = channel_scores(tokens, rank=rank)[0]
    expected = scores_by_svd(tokens[0], rank)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3 * float(expected.max().clamp_min(1.0)))


def test_scores_are_float32_and_need_no_gradient():
    tokens = random_tokens((2, 9, 8))
    scores = channel_scores(tokens.bfloat16().requires_grad_(), rank=3)
    assert scores.dtype == torch.float32 and not scores.requires_grad


@pytest.mark.parametrize("shape", [(2, 9, 24), (2, 24, 9)])
def test_scores_under_mixed_precision_are_exact(shape):
    tokens = random_tokens(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = channel_scores(tokens, rank=3)
    assert torch.equal(mixed, channel_scores(tokens, rank=3))


def test_at_most_so_many_evenly_spaced_tokens():
    tokens = random_tokens((3, 300, 4))
    assert torch.equal(evenly_spaced(tokens, 256), tokens[:, [i * 300 // 256 for i in range(256)]])
    assert evenly_spaced(tokens, 300) is tokens


@pytest.mark.parametrize("fraction,dim,k", [(0.1, 48, 5), (0.5, 10, 5), (1.0, 7, 7), (0.001, 48, 1)])
def test_lowest_channels(fraction, dim, k):
    scores = torch.rand(4, dim)
    low = lowest_channels(scores, fraction)
    assert (low.sum(-1) == k).all()
    for row, chosen in zip(scores, low, strict=True):
        assert row[chosen].max() <= row[~chosen].min() if k < dim else True


def routed_by_hand(router, receiver, donor, alpha):
    """One direction of the paper's injection for one sample: receiver (T, D), donor (T', D)."""
    dim = receiver.shape[-1]
    k = max(1, round(router.fraction * dim))
    low = scores_by_svd(receiver, router.rank).argsort()[:k]
    donor_mean = donor.mean(0)
    rms = math.sqrt(sum(float(receiver[t, d]) ** 2 for t in range(len(receiver)) for d in low) / (len(receiver) * k))
    donor_rms = math.sqrt(sum(float(donor_mean[d]) ** 2 for d in low) / k)
    scale = min(max(rms / max(donor_rms, 1e-6), 0.1), 10.0)
    routed = receiver.clone()
    for d in low:
        blend = 1 / (1 + math.exp(-float(alpha[d])))
        routed[:, d] = (1 - blend) * receiver[:, d] + blend * scale * donor_mean[d]
    return routed


@pytest.mark.parametrize("rank", [3, 64])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
@pytest.mark.parametrize("donor_size", [1.0, 100.0, 0.001])
def test_both_directions_equal_the_slow_reference(rank, fraction, donor_size):
    """Three samples in one batch; a donor so large or small that the scale reaches its limits too."""
    config = tiny_config(router_type="channel", channel_rank=rank, channel_fraction=fraction)
    router = ChannelRouter(config).requires_grad_(False)
    router.image_blend.copy_(torch.randn(48))
    router.text_blend.copy_(torch.randn(48))
    image = random_tokens((3, 9, 48), 1)
    text = random_tokens((3, 6, 48), 2) * donor_size
    streams, weights = router(Streams(image, text))
    for place in range(3):
        expected_image = routed_by_hand(router, image[place], text[place], router.image_blend)
        expected_text = routed_by_hand(router, text[place], image[place], router.text_blend)
        torch.testing.assert_close(streams.image[place], expected_image, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(streams.text[place], expected_text, rtol=1e-3, atol=1e-4 * max(1.0, donor_size))
    assert weights.shape == (3, 2) and ((weights > 0) & (weights <= 1)).all()


def test_neighbours_do_not_matter():
    router = ChannelRouter(tiny_config(router_type="channel", channel_rank=3))
    torch.nn.init.zeros_(router.image_blend), torch.nn.init.zeros_(router.text_blend)
    image, text = random_tokens((2, 9, 48), 1), random_tokens((2, 6, 48), 2)
    together, _ = router(Streams(image, text))
    alone, _ = router(Streams(image[1:], text[1:]))
    torch.testing.assert_close(alone.image[0], together.image[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.text[0], together.text[1], rtol=1e-4, atol=1e-4)


def test_one_token_has_no_variance_and_still_gives_a_result():
    """Every channel of a single token scores zero; which ones are refilled is then arbitrary, how many is not."""
    tokens = random_tokens((2, 1, 48))
    scores = channel_scores(tokens)
    assert not scores.any() and (lowest_channels(scores, 0.1).sum(-1) == 5).all()


def test_alpha_starts_at_one_half_and_learns():
    model = open_model(router_type="channel")
    fresh = ChannelRouter(tiny_config(router_type="channel"))
    fresh.init_own_weights(0.02)
    assert torch.equal(fresh.image_blend.sigmoid(), torch.full((48,), 0.5))
    features = model.get_image_features(**image_inputs([1, 2]))
    torch.stack(features.pooler_output).square().sum().backward()
    for blend in (model.model.router.image_blend, model.model.router.text_blend):
        assert (blend.grad != 0).sum() >= 5  # the channels that were refilled, and no other
        assert (blend.grad != 0).sum() <= 10


def test_no_loop_over_samples(monkeypatch):
    """The number of eigendecompositions does not grow with the batch."""
    calls = []
    real = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda *a, **k: calls.append(1) or real(*a, **k))
    counts = []
    for size in (1, 5):
        model = open_model(router_type="channel", channel_rank=1)
        calls.clear()
        model(**batch_of(model, [Sample(images=(i,)) for i in range(size)]))
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_weights_say_how_much_of_each_stream_stayed_its_own():
    """[image, text]: one minus the share of channels that were refilled times how far they were."""
    router = ChannelRouter(tiny_config(router_type="channel", channel_fraction=0.25))
    with torch.no_grad():
        router.image_blend.fill_(math.log(3))  # 3/4 of a refilled channel is the other stream's
        router.text_blend.fill_(-math.log(3))  # 1/4
    _, weights = router(Streams(random_tokens((2, 9, 48), 1), random_tokens((2, 6, 48), 2)))
    torch.testing.assert_close(weights, torch.tensor([[1 - 0.25 * 0.75, 1 - 0.25 * 0.25]] * 2))
