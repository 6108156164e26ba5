"""Batches of triplets: the tags of B images, and the captions that are positives of one and negatives of the others."""

from collections.abc import Sequence
from typing import Any

import torch

from poise.processing.tag_tokens import tokenize_tags
from poise.training.tagged_captions import TaggedCaptions


class TripletCollator:
    """
    Makes a batch of `TaggedCaptions` whose `captions` are those of the positive.

    Args:
        tokenizer: of the encoder, fast; it reads tags and captions.
        with_scores (`bool`): whether scores are written after the tags' names (the encoding `"text"`).

    Returns a dict of tensors: `tag_input_ids`, `tag_attention_mask`, `tag_scores` (B, L), `caption_input_ids`,
    `caption_attention_mask` (M, L') and `caption_owner` (M,), the row of the image that a caption describes.
    """

    def __init__(self, tokenizer: Any, with_scores: bool):
        self.tokenizer, self.with_scores = tokenizer, with_scores

    def __call__(self, images: Sequence[TaggedCaptions]) -> dict[str, torch.Tensor]:
        texts = [text for image in images for text in image.captions]
        owner = [row for row, image in enumerate(images) for _ in image.captions]
        captions = self.captions(texts)
        return {
            **self.tags(images),
            "caption_input_ids": captions["input_ids"],  # (M, L')
            "caption_attention_mask": captions["attention_mask"],  # (M, L')
            "caption_owner": torch.tensor(owner),  # (M,)
        }

    def tags(self, images: Sequence[TaggedCaptions]) -> dict[str, torch.Tensor]:
        """The tags alone, three times (B, L)."""
        arrays = tokenize_tags([image.tags for image in images], self.tokenizer, self.with_scores)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def captions(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The captions alone, twice (M, L')."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
