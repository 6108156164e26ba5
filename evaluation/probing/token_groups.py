"""Which positions of a prompt belong to what: the object, the rest of the picture, the soft prompt, the question.

Which image tokens to take away: the object's, and three rivals of the same number to compare it with.

Neo et al., arXiv 2410.07149, ablation experiments (register tokens after Darcet et al., arXiv 2309.16588: places where
a vision tower keeps global information, told by the length of their features).
"""

import hashlib
from collections.abc import Sequence

import torch

from .visual_prompts import VisualPrompts

# `last` is where the answer is predicted from: the prompt's last position and, as the answer grows, the answer's; of an
# encoder-decoder the decoder's positions, which attend to the others across.
GROUPS = ("image_object", "image_rest", "soft_prompt", "tag_words", "question", "last")


def token_groups(prompts: VisualPrompts, object_tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Groups that do not overlap, each (B, T) bool.

    The first position, if it is text, is in none: most models park spare attention there, and blocking that says
    nothing about where information sits. `question` is the other text, the words of the chat template included.

    Args:
        object_tokens (B, P) bool: image tokens of the object.
    """
    attended = prompts.attention_mask.bool()  # (B, T)
    image = prompts.places_of(torch.ones_like(prompts.image_places, dtype=torch.bool))  # (B, T)
    soft_prompt = torch.zeros_like(attended).scatter(1, prompts.prompt_places, True)  # (B, T)
    last = torch.zeros_like(attended)
    if not prompts.parts.is_encoder_decoder:
        last[:, -1] = True  # padding is on the left
    first = attended & (attended.cumsum(-1) == 1)  # (B, T)
    chosen = prompts.places_of(object_tokens)  # (B, T)
    return {
        "image_object": chosen,
        "image_rest": image & ~chosen,
        "soft_prompt": soft_prompt,
        "tag_words": prompts.tag_words & attended,
        "question": attended & ~(image | soft_prompt | prompts.tag_words | last | first),
        "last": last,
    }


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
