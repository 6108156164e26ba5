"""Which positions of a prompt belong to what: the object, the rest of the image, the soft prompt, the question.

Which image tokens to take away: the object's, and three rivals of the same number to compare it with.

Neo et al., arXiv 2410.07149, ablation experiments (register tokens after Darcet et al., arXiv 2309.16588: places where
a vision tower keeps global information, told by the length of their features).
"""

import hashlib
from collections.abc import Sequence

import torch

from .prompt_batch import PromptBatch

# `last` is where the answer is predicted from: the prompt's last position and, as the answer grows, the answer's; of an
# encoder-decoder the decoder's positions, which attend to the others across.
GROUPS = ("image_object", "image_rest", "soft_prompt", "tag_words", "question", "last")


def token_groups(prompts: PromptBatch, object_tokens: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """
    Groups that do not overlap, each (B, T) bool.

    The first position, if it is text, is in none: most models park spare attention there, and blocking that says
    nothing about where information sits. `question` is the other text, the words of the chat template included.

    Args:
        object_tokens (B, T) bool (*optional*): image tokens of the object; none by default.
    """
    attended = prompts.attention_mask.bool()  # (B, T)
    nothing = torch.zeros_like(attended)
    chosen = nothing if object_tokens is None else object_tokens
    image, soft_prompt = prompts.image, nothing if prompts.soft_prompt is None else prompts.soft_prompt
    tag_words = nothing if prompts.tag_words is None else prompts.tag_words & attended
    last = nothing.clone()
    if not prompts.parts.is_encoder_decoder:
        last[:, -1] = True  # padding is on the left
    first = attended & (attended.cumsum(-1) == 1)  # (B, T)
    return {
        "image_object": chosen,
        "image_rest": image & ~chosen,
        "soft_prompt": soft_prompt,
        "tag_words": tag_words,
        "question": attended & ~(image | soft_prompt | tag_words | last | first),
        "last": last,
    }


RIVALS = ("random", "register", "gradient")


def random_tokens(eligible: torch.Tensor, counts: torch.Tensor, ids: Sequence[str], seed: int = 0) -> torch.Tensor:
    """`counts` (B,) of the `eligible` (B, T) bool tokens, drawn for each prompt by its id and `seed`, (B, T) bool."""
    scores = torch.zeros(eligible.shape)  # (B, T)
    for row, name in enumerate(ids):
        digest = hashlib.sha256(f"random tokens {seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        some = eligible[row].cpu()
        scores[row, some] = torch.rand(int(some.sum()), generator=generator)  # whatever the padding
    return highest_tokens(scores.to(eligible.device), counts, eligible)


def highest_tokens(scores: torch.Tensor, counts: torch.Tensor, eligible: torch.Tensor) -> torch.Tensor:
    """The `counts` (B,) `eligible` (B, T) bool tokens with the highest scores (B, T), as (B, T) bool."""
    scores = scores.masked_fill(~eligible, -torch.inf)
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # (B, T)
    return (rank < counts[:, None].to(rank.device)) & eligible
