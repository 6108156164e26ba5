"""Frozen features of images and captions on the feature cache, as the head of a dual encoder trains on them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ...modeling import PoiseDualEncoder
from ..feature_cache.cache import FeatureCache, Features, fingerprint
from .caption_pairs import CaptionPairs, caption_parts


class PairFeatures(Dataset):
    """
    Features of every (image, text) pair that belongs together.

    `dataset.__getitems__(rows)` is a whole batch as the head reads it, with `image_rows` and `text_rows` (B,), from
    which `matches` tells what else in it belongs together. The data loader's collator leaves it alone.

    Args:
        images ([`FeatureCache`]): a row per image.
        texts ([`FeatureCache`]): a row per different text.
        pairs (`list[tuple[int, int]]`): (image, text) rows that belong together.
    """

    def __init__(self, images: FeatureCache, texts: FeatureCache, pairs: list[tuple[int, int]]):
        self.images, self.texts, self.pairs = images, texts, pairs
        self.texts_of: dict[int, set[int]] = {}
        for image, text in pairs:
            self.texts_of.setdefault(image, set()).add(text)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Features:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Features:
        images, texts = zip(*(self.pairs[index] for index in indices), strict=True)
        batch = {**self.images.batch(images), **self.texts.batch(texts)}
        batch = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
        return {**batch, "image_rows": torch.tensor(images), "text_rows": torch.tensor(texts)}

    def matches(self, image_rows: torch.Tensor, text_rows: torch.Tensor) -> torch.Tensor:
        """Which of these texts (B,) are written of which of these images (N,): (N, B) bool."""
        places: dict[int, list[int]] = {}
        for place, text in enumerate(text_rows.tolist()):
            places.setdefault(text, []).append(place)
        matches = torch.zeros(len(image_rows), len(text_rows), dtype=torch.bool)  # (N, B)
        for number, image in enumerate(image_rows.tolist()):
            matches[number, [place for text in self.texts_of[image] for place in places.get(text, ())]] = True
        return matches.to(image_rows.device)


def pair_features(
    model: PoiseDualEncoder,
    processor: Any,
    pairs: CaptionPairs,
    folder: str | os.PathLike,
    dtype: torch.dtype = torch.float16,
    batch_size: int = 64,
    parts: bool = False,
) -> PairFeatures:
    """
    The features of these pairs, computed where they are not in `folder` yet. Equal captions are stored once.

    Args:
        model: only its frozen encoders are asked.
        processor: image processor and tokenizer of the encoders.
        dtype (`torch.dtype`, *optional*, defaults to float16): of what is stored.
        parts (`bool`, *optional*, defaults to `False`): the phrases of captions are texts of their own, too.
    """
    captions = [
        [*own, *dict.fromkeys(part for caption in own for part in caption_parts(caption))] if parts else own
        for own in pairs.captions
    ]
    texts = sorted({caption for captions_of_one in captions for caption in captions_of_one})
    number = {text: row for row, text in enumerate(texts)}
    length = longest(processor, texts, model.config.max_text_length)
    config = model.config

    def images(rows: list[int]) -> Features:
        inputs = processor.image_processor(pairs.images(rows), return_tensors="pt")
        return model.vision_features(inputs["pixel_values"].to(model.device))

    def words(rows: list[int]) -> Features:
        inputs = tokenized(processor, [texts[row] for row in rows], length).to(model.device)
        return model.text_features(inputs["input_ids"], inputs["attention_mask"])

    image_key = fingerprint(
        model.vision_model, processor.image_processor.to_dict(), pairs.identity(), config.vision_feature_layer,
        config.vision_paths, str(model.dtype),
    )  # fmt: skip
    text_key = fingerprint(
        model.text_model, processor.tokenizer.backend_tokenizer.to_str(), texts, config.text_feature_layer, length,
        str(model.dtype),
    )  # fmt: skip
    folder = Path(folder)
    image_rows = FeatureCache.open(
        folder / "pictures", image_key, len(pairs), images, dtype, batch_size=batch_size, description="images"
    )
    text_rows = FeatureCache.open(
        folder / "texts", text_key, len(texts), words, dtype, batch_size=batch_size, description="captions"
    )
    together = [(row, number[caption]) for row, own in enumerate(captions) for caption in own]
    return PairFeatures(image_rows, text_rows, together)


def longest(processor: Any, texts: Sequence[str], limit: int) -> int:
    """Tokens of the longest text, at most `limit`."""
    return min(limit, max(len(ids) for ids in processor.tokenizer(list(texts), truncation=False)["input_ids"]))


def tokenized(processor: Any, texts: Sequence[str], length: int):
    """`input_ids` and `attention_mask` (B, length)."""
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt", padding_side="right"
    )
