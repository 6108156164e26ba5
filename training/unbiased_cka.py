"""Linear CKA from mini-batches, without bias: how alike two encoders arrange the same samples.

Centred kernel alignment (Kornblith et al., arXiv 1905.00414) with the unbiased estimator of HSIC (Song et al. 2012,
equation 5), averaged over batches before the ratio is taken (Nguyen et al., arXiv 2010.15327, section 2), so that
neither the batch size nor the width of a representation moves it and memory holds one batch. arXiv 2409.19425, section
3, chooses encoder pairs by it.
"""

from collections.abc import Mapping

import torch

SMALLEST_BATCH = 4  # the estimator divides by n − 3


def unbiased_hsic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """
    HSIC of kernels [..., n, n] of the same n samples, without bias → [...].

    Raises:
        ValueError: fewer than four samples.
    """
    n = first.shape[-1]
    if n < SMALLEST_BATCH:
        raise ValueError(f"{n} samples are too few for the unbiased HSIC: give at least {SMALLEST_BATCH}")
    first, second = _hollow(first), _hollow(second)  # [..., n, n] each
    trace = (first * second).sum((-1, -2))  # tr(K L) of symmetric K, L
    sums = first.sum((-1, -2)) * second.sum((-1, -2)) / ((n - 1) * (n - 2))
    rows = (first.sum(-1) * second.sum(-1)).sum(-1)  # 1ᵀ K L 1
    return (trace + sums - 2 * rows / (n - 2)) / (n * (n - 3))


def _hollow(kernel: torch.Tensor) -> torch.Tensor:
    """The kernel without its diagonal, which is what makes the plain estimator too large."""
    return kernel - torch.diag_embed(kernel.diagonal(dim1=-2, dim2=-1))


class MiniBatchCKA:
    """
    Collects batches of representations of the same samples by two families of encoders, and compares every pair.

    `add` takes the representations of one batch by name; `scores` gives the CKA of each name of the first family with
    each of the second.
    """

    def __init__(self) -> None:
        self.cross: dict[tuple[str, str], float] = {}
        self.own: dict[str, float] = {}
        self.batches = 0

    def add(self, first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
        """
        Args:
            first, second: name → representations (n, d) of the n samples of this batch; d may differ by name. The two
                families share no name.
        """
        kernels = {name: _linear_kernel(values) for name, values in {**first, **second}.items()}
        for name, kernel in kernels.items():
            self.own[name] = self.own.get(name, 0.0) + float(unbiased_hsic(kernel, kernel))
        for left in first:
            for right in second:
                hsic = float(unbiased_hsic(kernels[left], kernels[right]))
                self.cross[left, right] = self.cross.get((left, right), 0.0) + hsic
        self.batches += 1

    def scores(self) -> dict[tuple[str, str], float]:
        """CKA by (name of the first family, name of the second); 0 where a representation does not vary at all."""
        result = {}
        for (left, right), hsic in self.cross.items():
            scale = (max(0.0, self.own[left]) * max(0.0, self.own[right])) ** 0.5
            result[left, right] = hsic / scale if scale > 0 else 0.0
        return result


def _linear_kernel(values: torch.Tensor) -> torch.Tensor:
    values = values.double()
    values = values - values.mean(0)  # the estimate does not change; rounding does
    # One scale for all entries: representations of large norm would otherwise cost digits.
    return values @ values.T / values.pow(2).mean().clamp_min(1e-30)  # (n, n)
