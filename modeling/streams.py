"""The two streams that an information router stands between."""

from dataclasses import dataclass, replace

import torch


@dataclass
class Streams:
    """
    What a router may see of N images: what the processor made of the prompt, never an answer token.

    Attributes:
        image [N, P, D]: image tokens.
        text [N, K, D]: soft-prompt tokens.
        image_profile [N, 6·L], image_content [N, Dv]: activation profile and mean feature of the frozen tower.
        tag_words [N, R], tag_scores [N, 5]: see `tag_statistics.py`. has_tags [N] bool: whether there are any.
        question_words [N, R]: mean word direction of the question, where the router reads it. is_asked [N] bool:
            whether there is one.
        is_real [N] bool: false for the stand-in image of a batch that has none.
    """

    image: torch.Tensor
    text: torch.Tensor
    image_profile: torch.Tensor | None = None
    image_content: torch.Tensor | None = None
    tag_words: torch.Tensor | None = None
    tag_scores: torch.Tensor | None = None
    has_tags: torch.Tensor | None = None
    question_words: torch.Tensor | None = None
    is_asked: torch.Tensor | None = None
    is_real: torch.Tensor | None = None

    def routed(self, image, text):
        """The same streams with new tokens."""
        return replace(self, image=image, text=text)

    @property
    def num_items(self):
        return self.image.shape[0]
