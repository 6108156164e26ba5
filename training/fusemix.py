"""FuseMix: new pairs out of two, mixed in the latent spaces of frozen encoders.

"Data-Efficient Multimodal Fusion on a Single GPU" (Vouitsis et al., arXiv 2312.10144, section 5.1): one share for both
modalities, drawn from Beta(a, a), so that what was a pair stays one.
"""

import torch

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
