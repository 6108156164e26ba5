"""Which image tokens to take away: the object's, and three rivals of the same number to compare it with.

Neo et al., arXiv 2410.07149, ablation experiments (register tokens after Darcet et al., arXiv 2309.16588: places where
a vision tower keeps global information, told by the length of their features).
"""

import hashlib
from collections.abc import Sequence

import torch

from poise.evaluation.visual_prompts import VisualPrompts

RIVALS = ("random", "register", "gradient")


def tokens_of_patches(prompts: VisualPrompts, patches: Sequence) -> torch.Tensor:
    """B patch grids (rows, columns) of bool as image tokens, (B, P) bool; class tokens are never chosen."""
    chosen = torch.zeros(prompts.image_places.shape, dtype=torch.bool, device=prompts.embeddings.device)  # (B, P)
    for row, grid in enumerate(patches):
        chosen[row, prompts.parts.num_prefix_tokens :] = torch.as_tensor(grid).flatten().to(chosen.device)
    return chosen


def random_tokens(prompts: VisualPrompts, counts: torch.Tensor, ids: Sequence[str], seed: int = 0) -> torch.Tensor:
    """`counts` (B,) tokens drawn from each picture by its id and `seed`, (B, P) bool."""
    scores = torch.zeros(prompts.image_places.shape)  # (B, P)
    for row, name in enumerate(ids):
        digest = hashlib.sha256(f"random tokens {seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        scores[row] = torch.rand(scores.shape[1], generator=generator)
    return highest_tokens(scores.to(counts.device), counts, prompts.parts.num_prefix_tokens)


def highest_tokens(scores: torch.Tensor, counts: torch.Tensor, num_prefix: int = 0) -> torch.Tensor:
    """The `counts` (B,) tokens with the highest scores (B, P), as (B, P) bool; none of the first `num_prefix`."""
    scores = scores.clone()
    scores[:, :num_prefix] = -torch.inf
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # (B, P)
    return rank < counts[:, None].to(rank.device)
