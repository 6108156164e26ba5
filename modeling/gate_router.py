"""The adaptive gate: softmax weights for (image, text) from the pooled streams, each stream scaled by its weight.

The simple baseline of the Information Router paper (arXiv 2604.16264). Weights are doubled, so that an undecided gate
(½, ½) is the identity; the linear map starts at zero, so that training starts there.
"""

import torch
from torch import nn

from .streams import Streams
from .zero_linear import ZeroLinear


class GateRouter(nn.Module):
    """`streams.image` [N, P, D], `streams.text` [N, K, D] → the same, scaled; weights [N, 2] sum to one."""

    def __init__(self, config):
        super().__init__()
        self.gate = ZeroLinear(2 * config.text_config.hidden_size, 2)

    def forward(self, streams: Streams):
        pooled = torch.cat([streams.image.mean(1), streams.text.mean(1)], dim=-1)  # (N, 2D)
        weights = self.gate(pooled.to(self.gate.weight.dtype)).softmax(-1)  # (N, 2)
        scale = 2 * weights.to(streams.image.dtype)[..., None, None]  # (N, 2, 1, 1)
        return streams.routed(streams.image * scale[:, 0], streams.text * scale[:, 1]), weights
