"""Unbiased mini-batch CKA against its definition and against what it must not depend on."""

from itertools import permutations

import pytest
import torch

from poise.training.curation.encoder_ranking import MiniBatchCKA, unbiased_hsic


def cka(first, second, batch_size=None):
    collected = MiniBatchCKA()
    for start in range(0, len(first), batch_size or len(first)):
        stop = start + (batch_size or len(first))
        collected.add({"a": first[start:stop]}, {"b": second[start:stop]})
    return collected.scores()["a", "b"]


def test_hsic_is_the_u_statistic_over_distinct_samples():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    k, l = x @ x.T, y @ y.T  # noqa: E741
    total = 0.0
    quadruples = list(permutations(range(6), 4))
    for i, j, q, r in quadruples:
        total += float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
    assert unbiased_hsic(k, l).item() == pytest.approx(total / len(quadruples), rel=1e-9)


def test_the_same_representation_rotated_shifted_and_scaled_is_the_same():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1.0, abs=1e-9)
    assert cka(x, 3 * x @ rotation + 5, batch_size=16) == pytest.approx(1.0, abs=1e-9)


def test_strangers_score_nothing_on_average_where_the_plain_estimator_says_much():
    # 16 samples in 64 dimensions: the biased CKA of independent Gaussians is about 0.8.
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(3200, 64, generator=generator) for _ in range(2))
    assert abs(cka(x, y, batch_size=16)) < 0.02
    plain = []
    for a, b in zip(x.split(16), y.split(16), strict=True):
        a, b = a - a.mean(0), b - b.mean(0)
        plain.append((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))
    assert torch.stack(plain).mean() > 0.7


def test_the_batch_size_does_not_move_it():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4096, 12, generator=generator)
    y = x @ torch.randn(12, 20, generator=generator) + 2 * torch.randn(4096, 20, generator=generator)
    scores = [cka(x, y, batch_size=size) for size in (8, 64, 1024)]
    assert max(scores) - min(scores) < 0.03 and 0.2 < scores[0] < 0.95


def test_a_representation_that_never_varies_scores_nothing():
    assert cka(torch.ones(32, 4), torch.randn(32, 4)) == 0.0


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="3 samples"):
        cka(torch.randn(3, 4), torch.randn(3, 4))


def test_every_batch_weighs_alike_whatever_its_energy():
    """Each batch's kernels are divided by their own mean square, so that one loud batch does not speak for all."""
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(16, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    y[8:] += x[8:]
    loud = torch.ones(16, 1, dtype=torch.float64)
    loud[8:] = 1e4
    assert cka(loud * x, y, batch_size=8) == pytest.approx(cka(x, y, batch_size=8), rel=1e-9)
    numbers = {"xy": 0.0, "xx": 0.0, "yy": 0.0}
    for part in (slice(8), slice(8, 16)):
        kernels = {}
        for name, values in (("x", x[part]), ("y", y[part])):
            values = values - values.mean(0)
            kernels[name] = values @ values.T / values.square().mean()
        for name in numbers:
            numbers[name] += float(unbiased_hsic(kernels[name[0]], kernels[name[1]]))
    assert cka(x, y, batch_size=8) == pytest.approx(numbers["xy"] / (numbers["xx"] * numbers["yy"]) ** 0.5, rel=1e-9)
