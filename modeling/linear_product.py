"""A linear map whose result does not depend on where its weight lies in memory.

Weights that are mapped from a file lie at any byte offset. For a single row, MKL multiplies by another kernel where the
weight is not aligned to 16 bytes, and the result differs by a rounding error; with two rows or more it does not.
"""

from torch import nn


def linear_product(rows, weight, bias=None):
    """`torch.nn.functional.linear` of [..., in], never with a single row → [..., out]."""
    if rows.shape[:-1].numel() != 1:
        return nn.functional.linear(rows, weight, bias)  # (..., out)
    twice = rows.reshape(1, -1).repeat(2, 1)  # (2, in)
    return nn.functional.linear(twice, weight, bias)[0].reshape(*rows.shape[:-1], -1)  # (..., out)


class Linear(nn.Linear):
    """`torch.nn.Linear` for what may be a single row: [..., in] → [..., out]."""

    def forward(self, rows):
        return linear_product(rows, self.weight, self.bias)  # (..., out)
