"""Running Gaussians over a training stream, and the first question to them: is this typical?

A frozen tower's activations do not move during training, so their running mean and covariance describe what a sound
input looks like, and the Mahalanobis distance to them tells at inference that an input is not one (Lee et al., arXiv
1807.03888, without their classes). No degraded example is ever needed.

A threshold needs scores of samples that the covariance was *not* fitted to: with fewer samples than dimensions every
new input looks strange. So a tenth of the stream is held out for calibration, chosen by a hash of the vectors
themselves: the same sample stays on its side in every epoch and in every process.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .linear_product import linear_product

HELD_OUT = 0.1  # share of the training stream that calibrates
CALIBRATION_SIZE = 512  # held-out samples that are kept; a ring, the newest replace the oldest
MIN_CALIBRATION = 32  # fewer give no verdict: everything counts as typical
SHRINKAGE = 0.1  # weight of the covariance's own diagonal


def gather_rows(rows):
    """All processes' rows of a [n, E] tensor, in rank order; n may differ between processes and may be zero."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    world = torch.distributed.get_world_size()
    count = torch.tensor([rows.shape[0]], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world)]
    torch.distributed.all_gather(counts, count)
    longest = int(max(counts))
    padded = rows.new_zeros(longest, rows.shape[1])
    padded[: rows.shape[0]] = rows
    parts = [torch.zeros_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])


def full_precision(rows):
    """Mixed-precision training would multiply matrices in bfloat16, and a covariance in bfloat16 is noise."""
    return torch.autocast(rows.device.type, enabled=False)


def held_out_by_hash(rows):
    """Which rows calibrate, [n, E] → [n] bool: a pure function of each row, stable against rounding noise."""
    index = torch.arange(rows.shape[1], device=rows.device, dtype=torch.float64)
    direction = torch.sin(1.7 * index + 0.3)  # (E,)
    cosine = nn.functional.normalize(rows.double(), dim=-1) @ direction  # (n,)
    return (cosine * 1e3).frac().abs() < HELD_OUT


class StreamStatistics(nn.Module):
    """Statistics of a training stream: float32 and int64 buffers that keep their precision and start at zero."""

    def _apply(self, fn, recurse=True):
        # `.to(bfloat16)` moves devices but keeps precision: a covariance in bfloat16 is noise.
        def keep_dtype(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def init_own_weights(self, std):
        for buffer in self.buffers(recurse=False):
            init.zeros_(buffer)


class RunningMoments(StreamStatistics):
    """
    Running mean and covariance of vectors.

    The state is exact and does not depend on how samples were batched or accumulated (Chan et al.'s parallel update).

    Args:
        dim (`int`): E, size of a vector.
    """

    def __init__(self, dim):
        super().__init__()
        # The dtype is named: a model that is loaded in half precision is built under that default.
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float32))
        self.register_buffer("scatter", torch.zeros(dim, dim, dtype=torch.float32))

    @torch.no_grad()
    def merge(self, rows):
        """Add vectors [n, E], the same in every process."""
        added = rows.shape[0]
        if added == 0:
            return
        with full_precision(rows):
            total = self.count + added
            row_mean = rows.mean(0)  # (E,)
            centred = rows - row_mean  # (n, E)
            shift = row_mean - self.mean  # (E,)
            self.scatter += centred.mT @ centred + torch.outer(shift, shift) * (self.count * added / total)
            self.mean += shift * (added / total)
            self.count += added

    def covariance(self, shrinkage=SHRINKAGE):
        """Covariance shrunk towards its own diagonal, [E, E]."""
        covariance = self.scatter / (self.count - 1)  # (E, E)
        diagonal = covariance.diagonal()  # (E,)
        floor = 1e-6 * diagonal.mean().clamp_min(1e-12)
        return (1 - shrinkage) * covariance + torch.diag(shrinkage * diagonal + floor)


class CalibratedStatistics(StreamStatistics):
    """
    Statistics whose verdict is calibrated on samples that they keep.

    Args:
        kept_dim (`int`): numbers of a kept sample.
        args: of the class that this one is mixed into.
    """

    def __init__(self, kept_dim, *args):
        super().__init__(*args)
        self.register_buffer("calibration", torch.zeros(CALIBRATION_SIZE, kept_dim, dtype=torch.float32))
        self.register_buffer("calibration_count", torch.zeros((), dtype=torch.int64))
        self.stale = True

    def keep(self, rows):
        """Write rows [n, E] into the ring of kept samples; the newest replace the oldest."""
        # Of more rows than the ring holds only the last ones would stay: writing one slot twice has no defined order.
        skipped = max(0, rows.shape[0] - CALIBRATION_SIZE)
        kept = rows[skipped:]
        start = self.calibration_count + skipped
        slots = (start + torch.arange(kept.shape[0], device=rows.device)) % CALIBRATION_SIZE
        self.calibration[slots] = kept
        self.calibration_count += rows.shape[0]
        self.stale = True

    def kept(self):
        """The samples that the ring holds, [C, E]."""
        return self.calibration[: min(int(self.calibration_count), CALIBRATION_SIZE)]

    @property
    def ready(self):
        """Whether enough was kept for a verdict, a bool tensor of shape ()."""
        return self.calibration_count >= MIN_CALIBRATION

    def train(self, mode=True):
        # Calibration is paid where training turns into inference, not at every step.
        super().train(mode)
        if not mode and self.stale:
            self.fit()
        return self

    def fit(self):
        """Derive what a verdict needs from what was observed."""
        raise NotImplementedError


class Typicality(CalibratedStatistics, RunningMoments):
    """
    Is this like anything seen in training? The score is the log Mahalanobis distance, and held-out samples scale it.

    Args:
        dim (`int`): E, size of a vector.
        quantile (`float`): share of held-out samples that lie below the threshold.
        slope (`float`): steepness of the weight, per standard deviation of held-out scores.
    """

    def __init__(self, dim, quantile, slope=6.0):
        super().__init__(dim, dim)
        self.quantile, self.slope = quantile, slope
        # Derived by `fit`; stored, so that a loaded model needs no factorization and compiles without a graph break.
        self.register_buffer("whitener", torch.zeros(dim, dim, dtype=torch.float32))
        self.register_buffer("centre_scale_threshold", torch.tensor([0.0, 1.0, 0.0], dtype=torch.float32))

    def init_own_weights(self, std):
        super().init_own_weights(std)
        init.copy_(self.centre_scale_threshold, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float32))

    @torch.no_grad()
    def observe(self, rows):
        """Add training samples, [n, E]. Every process must call it, with its own (possibly no) rows."""
        rows = gather_rows(rows.detach().float())  # (n, E)
        held_out = held_out_by_hash(rows)  # (n,)
        self.merge(rows[~held_out])
        self.keep(rows[held_out])

    @torch.no_grad()
    def fit(self):
        """Derive whitening, and centre, scale and threshold of the score, from what was observed."""
        if self.mean.is_meta or not bool(self.ready) or int(self.count) < 2:
            return
        kept = self.kept()  # (C, E)
        with full_precision(kept):
            self.whitener.copy_(inverse_factor(self.covariance()))
            score = self.score(kept)  # (C,)
        centre, scale = score.mean(), score.std().clamp_min(1e-3)
        # The tail of a few hundred samples is thin: never below what a normal tail of that mass would give.
        normal_tail = math.sqrt(2) * torch.erfinv(torch.tensor(2 * self.quantile - 1)).item()
        empirical = ((score - centre) / scale).quantile(self.quantile)
        self.centre_scale_threshold.copy_(torch.stack([centre, scale, empirical.clamp_min(normal_tail)]))
        self.stale = False

    def score(self, rows):
        """Log Mahalanobis distance, [n, E] → [n]."""
        whitened = linear_product(rows - self.mean, self.whitener)  # (n, E)
        return whitened.square().sum(-1).clamp_min(1e-12).log() / 2  # (n,)

    def deviation(self, rows):
        """The score in standard deviations of held-out samples beyond their mean, [n, E] → [n]."""
        centre, scale, _ = self.centre_scale_threshold.unbind()
        with full_precision(rows):
            return (self.score(rows.float()) - centre) / scale

    def forward(self, rows):
        """Weight of each row, [n, E] → [n]: sigmoid(slope · (t − d)), near 1 for what training has seen."""
        threshold = self.centre_scale_threshold[2]
        return torch.where(self.ready, torch.sigmoid(self.slope * (threshold - self.deviation(rows))), 1.0)

    def beyond(self, rows):
        """Standard deviations by which rows lie beyond the threshold, [n, E] → [n]; 0 within, or before any verdict."""
        outside = (self.deviation(rows) - self.centre_scale_threshold[2]).clamp_min(0.0)  # (n,)
        return torch.where(self.ready, outside, 0.0)


def inverse_factor(covariance):
    """Inverse of the lower Cholesky factor, [E, E] → [E, E] lower triangular."""
    factor = torch.linalg.cholesky(covariance)  # (E, E)
    return torch.linalg.solve_triangular(factor, torch.eye(len(factor), device=factor.device), upper=False)
