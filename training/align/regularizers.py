"""FuseMix: new pairs out of two, mixed in the latent spaces of frozen encoders.

"Data-Efficient Multimodal Fusion on a Single GPU" (Vouitsis et al., arXiv 2312.10144, section 5.1): one share for both
modalities, drawn from Beta(a, a), so that what was a pair stays one.

STRUCTURE: the neighbourhoods that a frozen encoder knows shall survive its projector.

"With Limited Data for Multimodal Alignment, Let the STRUCTURE Guide You" (Gröger et al., arXiv 2506.16895, section 4):
within a batch, who resembles whom before the projector and behind it, compared as distributions over several steps.
"""

import torch
from torch.nn.functional import normalize

Features = dict[str, torch.Tensor]


def fuse_mix(features: Features, alpha: float) -> tuple[Features, torch.Tensor]:
    """
    Every pair mixed with another of the batch: λ·(x, y) + (1 − λ)·(x′, y′), λ ~ Beta(alpha, alpha), one λ per batch.

    The paper mixes one vector per input. Where a path reads tokens, they are mixed place by place; texts of different
    length then have tokens that count partly, which the weights in `text_mask` say.

    Args:
        features: as `DualEncoderHead` reads them: `vision_tokens` (B, P, Dv), `vision_cls` (B, Dv), `text_tokens`
            (B, L, Dt), `text_mask` (B, L).
        alpha (`float`): above 0; 1 draws the share evenly, as published.

    Returns:
        The mixed features, and with whom each was mixed (B,).
    """
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    partner = torch.randperm(len(features["text_mask"]), device=features["text_mask"].device)  # (B,)

    def mixed(values: torch.Tensor) -> torch.Tensor:
        return share * values + (1 - share) * values[partner]  # as `values`

    tokens, mask = features["text_tokens"], features["text_mask"].to(features["text_tokens"].dtype)
    weights = mixed(mask)  # (B, L)
    # Where only one of the two texts has a token, it is that token, with a smaller weight.
    text = mixed(tokens * mask[..., None]) / weights.clamp_min(1e-6)[..., None]  # (B, L, Dt)
    vision = {name: mixed(values) for name, values in features.items() if name.startswith("vision_")}
    return {**vision, "text_tokens": text, "text_mask": weights}, partner


def structure_regularizer(
    original: torch.Tensor, aligned: torch.Tensor, levels: int = 1, temperature: float = 0.07
) -> torch.Tensor:
    """
    Mean over levels l of JS(P(original)ˡ, P(aligned)ˡ) / l, where row i of P is the softmax over cosine similarities of
    sample i (vectors scaled to length one, then centred), and Pˡ reaches neighbours l steps away.

    Args:
        original (B, Do): what the frozen encoder says, pooled.
        aligned (B, D): what the projector made of it.
        levels (`int`, *optional*, defaults to 1).
        temperature (`float`, *optional*, defaults to 0.07, as in the published code): of the softmax.

    Returns:
        A scalar between 0 (the same structure) and log 2.
    """
    before, after = (_similarity(vectors.float(), temperature) for vectors in (original, aligned))  # (B, B)
    before_power, after_power = before, after
    total = before.new_zeros(())
    for level in range(1, levels + 1):
        total = total + jensen_shannon(before_power, after_power) / level
        before_power, after_power = before_power @ before, after_power @ after  # (B, B)
    return total / levels


def _similarity(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    unit = normalize(vectors, dim=-1)  # (B, D)
    unit = unit - unit.mean(0)  # (B, D)
    return (unit @ unit.T / temperature).softmax(-1)  # (B, B)


def jensen_shannon(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence of two distributions per row, (B, C) each, in nats, mean over rows."""
    middle = (first + second) / 2  # (B, C)

    def to_middle(values: torch.Tensor) -> torch.Tensor:
        return torch.special.xlogy(values, values).sum(-1) - torch.special.xlogy(values, middle).sum(-1)  # (B,)

    return (to_middle(first) + to_middle(second)).mean() / 2
