"""Running statistics: exact however they are batched, honest about what they have not seen, and kept in float32."""

import pytest
import torch
from tiny_models import fit_statistics, tiny_model

from poise.modeling import PoiseForConditionalGeneration
from poise.modeling.typicality import CALIBRATION_SIZE, MIN_CALIBRATION, Typicality, held_out_by_hash

pytestmark = pytest.mark.numerics

DIM = 12


def stream(count, seed=0, dim=DIM):
    """Correlated samples with a mean, (count, dim)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, dim, generator=generator) @ mixing + torch.arange(dim)


def observed(rows, sizes=None, **settings):
    """Statistics of `rows`, seen in batches of the given sizes, in evaluation mode."""
    torch.manual_seed(0)
    settings = {"slope": 6.0, "quantile": 0.999, **settings}
    statistics = Typicality(DIM, **settings)
    statistics.train()
    for part in rows.split(sizes or len(rows)):
        statistics.observe(part)
    return statistics.eval()


@pytest.mark.parametrize("sizes", [1, 7, 64, [500, 0, 100, 400]])
def test_state_does_not_depend_on_how_samples_were_batched(sizes):
    rows = stream(1000)
    at_once, in_parts = observed(rows), observed(rows, sizes)
    for (name, one), other in zip(at_once.named_buffers(), in_parts.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3, msg=name)


def test_what_is_loaded_gives_the_same_verdict():
    """Also where the derived numbers come from an earlier state of the statistics."""
    statistics, strange = observed(stream(1000)), 5 * stream(4, seed=1)
    loaded = Typicality(DIM, slope=6.0, quantile=0.999)
    state = statistics.state_dict() | {"centre_scale_threshold": torch.tensor([0.0, 1.0, 0.0])}
    loaded.load_state_dict(state)
    assert statistics.beyond(strange).min() > 0
    torch.testing.assert_close(loaded.eval().beyond(strange), statistics.beyond(strange), rtol=1e-5, atol=1e-5)


def test_mean_and_covariance_are_those_of_the_samples():
    rows = stream(1000)
    statistics = observed(rows, 13)
    kept = rows[~held_out_by_hash(rows)].double()
    assert int(statistics.count) == len(kept)
    torch.testing.assert_close(statistics.mean.double(), kept.mean(0), rtol=1e-4, atol=1e-4)
    covariance = statistics.scatter.double() / (len(kept) - 1)
    torch.testing.assert_close(covariance, torch.cov(kept.T), rtol=1e-3, atol=1e-2)


def test_a_large_mean_costs_no_precision():
    """A sum of squares would lose everything at a mean of 10⁴; the parallel update does not."""
    rows = stream(1000) + 1e4
    statistics = observed(rows, 10)
    kept = rows[~held_out_by_hash(rows)].double()
    covariance = statistics.scatter.double() / (len(kept) - 1)
    torch.testing.assert_close(covariance, torch.cov(kept.T), rtol=2e-2, atol=0.1)


def test_the_side_of_a_sample_is_its_own():
    """About a tenth is held out, the same in every batch and in every epoch, whatever small noise rounding adds."""
    rows = stream(4000)
    sides = held_out_by_hash(rows)
    assert 0.07 < sides.float().mean() < 0.13
    assert torch.equal(sides[100:200], held_out_by_hash(rows[100:200]))
    moved = held_out_by_hash(rows * (1 + 1e-7))
    assert (moved != sides).float().mean() < 0.01
    assert not torch.equal(sides, held_out_by_hash(stream(4000, seed=1)))


def test_calibration_is_a_ring_of_the_newest():
    rows = stream(12_000)
    held_out = rows[held_out_by_hash(rows)]
    assert len(held_out) > 2 * CALIBRATION_SIZE
    for sizes in (500, 12_000):
        statistics = observed(rows, sizes)
        assert int(statistics.calibration_count) == len(held_out)
        newest = {tuple(row.tolist()) for row in held_out[-CALIBRATION_SIZE:]}
        assert {tuple(row.tolist()) for row in statistics.calibration} == newest


def test_typical_samples_weigh_one_and_far_ones_nothing():
    statistics = observed(stream(3000))
    unseen = stream(1000, seed=5)
    assert statistics(unseen).quantile(0.01) > 0.9
    assert statistics(unseen).mean() > 0.99
    assert statistics.beyond(unseen).quantile(0.99) == 0 and Typicality(DIM, 0.99).eval().beyond(unseen).max() == 0
    far = unseen + 30 * torch.randn(DIM)
    expected = statistics.deviation(far) - statistics.centre_scale_threshold[2]
    torch.testing.assert_close(statistics.beyond(far), expected)
    assert expected.min() > 0
    # Far in one direction, too large, too small a spread in no direction at all, another correlation.
    assert statistics(unseen + 30 * torch.randn(DIM)).max() < 0.05
    assert statistics(unseen.mean(0) + 20 * (unseen - unseen.mean(0))).max() < 0.5
    shuffled = torch.stack([column[torch.randperm(1000)] for column in unseen.T], dim=1)
    assert statistics(shuffled).mean() < 0.8


def test_more_dimensions_than_samples_still_accept_the_unseen():
    """Fitted distances would call every new sample strange; held-out ones do not."""
    torch.manual_seed(0)
    statistics = Typicality(200, slope=6.0, quantile=0.999)
    rows = stream(700, dim=200)
    statistics.train().observe(rows)
    statistics.eval()
    assert int(statistics.calibration_count) >= MIN_CALIBRATION
    assert statistics(stream(300, seed=5, dim=200)).mean() > 0.95


def test_no_verdict_before_enough_was_held_out():
    rows = stream(1000)
    held_out = held_out_by_hash(rows)
    just_too_few = rows[: int(held_out.cumsum(0).tolist().index(MIN_CALIBRATION))]
    far = torch.full((3, DIM), 1e4)
    assert (observed(just_too_few)(far) == 1).all()
    enough = rows[: len(just_too_few) + 1]
    assert (observed(enough)(far) < 0.01).all()
    assert (Typicality(DIM, slope=6.0, quantile=0.999).eval()(far) == 1).all()


def test_slope_and_threshold():
    """Weight ½ exactly at the threshold, steeper with a greater slope; the threshold is in the far tail."""
    rows = stream(3000)
    for slope in (1.0, 6.0):
        statistics = observed(rows, slope=slope)
        _, _, threshold = statistics.centre_scale_threshold
        deviation = statistics.deviation(stream(100, seed=3))
        torch.testing.assert_close(
            statistics(stream(100, seed=3)), torch.sigmoid(slope * (threshold - deviation)), rtol=1e-5, atol=1e-5
        )
        assert threshold >= 3.09  # the normal tail of 0.1 %


def test_distance_is_mahalanobis():
    """To the covariance of what was not held out, with a tenth of it replaced by its own diagonal."""
    seen = stream(3000)
    statistics = observed(seen)
    rows = stream(20, seed=3)
    covariance = torch.cov(seen[~held_out_by_hash(seen)].double().T)
    inverse = torch.linalg.inv(0.9 * covariance + 0.1 * torch.diag(covariance.diagonal()))
    centred = (rows - statistics.mean).double()
    expected = ((centred @ inverse) * centred).sum(-1).sqrt().log()
    # Sums in float32, and a floor of 1e-6 of the mean variance.
    torch.testing.assert_close(statistics.score(rows).double(), expected, rtol=1e-3, atol=1e-3)


def test_half_precision_models_keep_their_statistics():
    statistics = observed(stream(1000))
    before = statistics(stream(10, seed=3))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert all(b.dtype in (torch.float32, torch.int64) for b in statistics.to(dtype).buffers())
    assert torch.equal(statistics(stream(10, seed=3)), before)


def test_mixed_precision_training_and_inference_stay_exact():
    """`Trainer(bf16=True)` runs everything under autocast, which would round the matrix products."""
    rows, unseen = stream(1000), stream(10, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = observed(rows, 100)
        weights = mixed(unseen)
    plain = observed(rows, 100)
    assert weights.dtype == torch.float32 and torch.equal(weights, plain(unseen))
    for one, other in zip(mixed.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other)


def test_statistics_are_not_parameters_and_meet_no_optimizer():
    model = tiny_model(router_type="reliability")
    names = {name for name, _ in model.named_parameters()}
    buffers = {name for name, _ in model.model.router.named_buffers(prefix="model.router")}
    assert buffers and not buffers & names and buffers <= set(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_with_the_model(dtype, tmp_path):
    """In any precision of the rest: the same statistics in float32, and the same weights for the same evidence."""
    model = tiny_model(router_type="reliability")
    fit_statistics(model)
    model.to(dtype).save_pretrained(tmp_path)
    loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.model.projector.linear_1.weight.dtype == dtype
    ours, theirs = model.model.router.state_dict(), loaded.model.router.state_dict()
    for name, _ in model.model.router.named_buffers():
        assert theirs[name].dtype == ours[name].dtype
        assert theirs[name].dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(theirs[name], ours[name], msg=name, rtol=1e-4, atol=1e-5)


def test_training_goes_on_where_it_was_saved(tmp_path):
    """Half before and half after a reload is the same state as everything in one run."""
    rows = stream(1000)
    once = observed(rows, 100)
    first = observed(rows[:500], 100)
    second = Typicality(DIM, slope=6.0, quantile=0.999)
    second.load_state_dict(first.state_dict())
    second.train()
    for part in rows[500:].split(100):
        second.observe(part)
    second.eval()
    for (name, one), other in zip(once.named_buffers(), second.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def test_evaluation_between_training_steps_changes_nothing():
    rows = stream(1000)
    straight = observed(rows, 100)
    interrupted = Typicality(DIM, slope=6.0, quantile=0.999)
    for part in rows.split(100):
        interrupted.train().observe(part)
        interrupted.eval()(part)
    for one, other in zip(straight.buffers(), interrupted.buffers(), strict=True):
        assert torch.equal(one, other)
