"""Projectors: from the frozen vision tower's features to the language model's embedding space.

`mlp` is LLaVA's two-layer projector (arXiv 2310.03744). `aggregator` follows LION's vision aggregator (CVPR 2024, arXiv
2311.11860, section 3.2): the deepest features attend to middle layers, which still hold what the deepest have thrown
away. Its residual branches start at zero, so that it starts as the deep features themselves.
"""

from torch import nn
from transformers.activations import ACT2FN

from .zero_linear import ZeroLinear


class MLPProjector(nn.Module):
    """
    Two linear layers; several vision layers are concatenated on the channel axis.

    `vision_features` [N, S, P, Dv] → [N, P, D]: N images, S selected layers, P tokens.
    """

    def __init__(self, vision_dim, text_dim, num_layers, hidden_act="gelu"):
        super().__init__()
        self.linear_1 = nn.Linear(vision_dim * num_layers, text_dim)
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(text_dim, text_dim)

    @property
    def last_linear(self):
        """The layer that writes in the language model's space."""
        return self.linear_2

    def forward(self, vision_features):
        stacked = vision_features.transpose(1, 2).flatten(2)  # (N, P, S*Dv)
        return self.linear_2(self.act(self.linear_1(stacked)))  # (N, P, D)


class AggregatorBlock(nn.Module):
    """Deep tokens attend to one middle layer, then a feed-forward: two [N, P, Dv] → [N, P, Dv]."""

    def __init__(self, dim, num_heads, hidden_act):
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_source = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = ZeroLinear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), ACT2FN[hidden_act], ZeroLinear(2 * dim, dim))

    def forward(self, deep, middle):
        key, value = self.key_value(self.norm_source(middle)).chunk(2, dim=-1)  # (N, P, Dv) each
        heads = [self._heads(x) for x in (self.query(self.norm_query(deep)), key, value)]  # (N, H, P, dh) each
        mixed = nn.functional.scaled_dot_product_attention(*heads)  # (N, H, P, dh)
        deep = deep + self.out(mixed.transpose(1, 2).flatten(2))  # (N, P, Dv)
        return deep + self.mlp(self.norm_mlp(deep))  # (N, P, Dv)

    def _heads(self, tokens):
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, H, P, dh)


class AggregatorProjector(nn.Module):
    """
    The last selected layer gathers from the earlier ones in turn, then `MLPProjector` maps it.

    `vision_features` [N, S, P, Dv] → [N, P, D]; the last of the S layers is the deep one.
    """

    def __init__(self, vision_dim, text_dim, num_layers, hidden_act="gelu"):
        super().__init__()
        num_heads = max(1, vision_dim // 64)
        while vision_dim % num_heads:
            num_heads -= 1
        self.blocks = nn.ModuleList(AggregatorBlock(vision_dim, num_heads, hidden_act) for _ in range(num_layers - 1))
        self.mlp = MLPProjector(vision_dim, text_dim, 1, hidden_act)

    @property
    def last_linear(self):
        return self.mlp.last_linear

    def forward(self, vision_features):
        deep = vision_features[:, -1]  # (N, P, Dv)
        for block, middle in zip(self.blocks, vision_features[:, :-1].unbind(1), strict=True):
            deep = block(deep, middle)  # (N, P, Dv)
        return self.mlp(deep[:, None])  # (N, P, D)


PROJECTORS = {"mlp": MLPProjector, "aggregator": AggregatorProjector}


def build_projector(config) -> nn.Module:
    """The projector that `config.projector_type` names."""
    return PROJECTORS[config.projector_type](
        config.vision_config.hidden_size,
        config.text_config.hidden_size,
        len(config.vision_feature_layers),
        config.projector_hidden_act,
    )
