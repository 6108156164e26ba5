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
        weights [N, 2]: how far a reliability router trusts each, which it judges before the soft prompt is made.
    """

    image: torch.Tensor
    text: torch.Tensor
    weights: torch.Tensor | None = None

    def routed(self, image, text):
        """The same streams with new tokens."""
        return replace(self, image=image, text=text)

    @property
    def num_items(self):
        return self.image.shape[0]
