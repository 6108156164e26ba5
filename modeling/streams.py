"""The two streams that an information router stands between."""

from dataclasses import dataclass, replace

import torch


@dataclass
class Streams:
    """
    What a router may see: prompt positions only, never an answer token.

    Attributes:
        image [N, P, D]: image tokens. image_mask [N, P] bool: which are real.
        text [N, Q, D]: soft-prompt tokens, and the question's in `router_scope="prompt"`. text_mask [N, Q] bool.
        prompt_mask [N, Q] bool: which text positions are soft-prompt tokens (a question is never faded away).
        image_profile [N, 6·L], image_content [N, Dv]: activation profile and mean feature of the frozen tower.
        tag_words [N, R], tag_scores [N, 5]: see `tag_statistics.py`. has_tags [N] bool: whether there are any.
        question_words [N, R]: mean word direction of the question, where the router reads it.
        is_real [N] bool: false for the stand-in picture of a batch that has none.
    N counts pictures (`router_scope="image"`) or samples (`"prompt"`).
    """

    image: torch.Tensor
    image_mask: torch.Tensor
    text: torch.Tensor
    text_mask: torch.Tensor
    prompt_mask: torch.Tensor
    image_profile: torch.Tensor | None = None
    image_content: torch.Tensor | None = None
    tag_words: torch.Tensor | None = None
    tag_scores: torch.Tensor | None = None
    has_tags: torch.Tensor | None = None
    question_words: torch.Tensor | None = None
    is_real: torch.Tensor | None = None

    def routed(self, image, text):
        """The same streams with new tokens."""
        return replace(self, image=image, text=text)

    @property
    def num_items(self):
        return self.image.shape[0]


def masked_mean(tokens, mask):
    """Mean over the real tokens, [N, T, D] and [N, T] → [N, D]; zero where a stream has none."""
    weights = mask.to(tokens.dtype)  # (N, T)
    total = weights.sum(-1, keepdim=True).clamp_min(1.0)  # (N, 1)
    return (weights[:, None] @ tokens)[:, 0] / total  # (N, D)
