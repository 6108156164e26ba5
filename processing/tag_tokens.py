"""Tags as the tag encoder reads them: a line of text per image, and for each token the score of its tag."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from .tags import Tag

logger = logging.get_logger(__name__)

SCORE_ENCODINGS = ("text", "embedding", "attention_bias")


def tag_line(tags: Sequence[Tag], with_scores: bool) -> tuple[str, list[int]]:
    """The line `"dog 0.97, ball 0.61"`, or `"dog, ball"` without scores, and for each character its tag's index or -1.

    A comma inside a name becomes a space: commas separate tags.
    """
    pieces, owner = [], []
    for index, tag in enumerate(tags):
        name = " ".join(tag.name.replace(",", " ").split()) or tag.name
        piece = f"{name} {tag.score:.2f}" if with_scores else name
        if pieces:
            pieces.append(", ")
            owner.extend([-1, -1])
        pieces.append(piece)
        owner.extend([index] * len(piece))
    return "".join(pieces), owner


def tag_prompt_words(tags: Sequence[Tag]) -> str:
    """The tag names as words of the language model's prompt: `"tags : dog , ball ."`, or nothing without tags.

    Lower case and spaced punctuation read the same to a word-level vocabulary and to byte pairs.
    """
    return f"tags : {' , '.join(tag.name for tag in tags)} ." if tags else ""


def tokenize_tags(
    tags_of_images: Sequence[Sequence[Tag]], tokenizer: Any, with_scores: bool, length: int | None = None
) -> dict[str, np.ndarray]:
    """Token ids, mask and scores of the tags of N images, right-padded to the longest line, L tokens.

    An image without tags is a row of zeros in all three. Where a line is longer than `length` or than the tag encoder
    can read (`tokenizer.model_max_length`), the longest prefix of whole tags is kept, which is said once.

    Args:
        tags_of_images: per image the tags by falling score, as `check_tags` gives them.
        tokenizer: a fast tokenizer; its offsets tell which tag a token belongs to.
        with_scores (`bool`): whether the scores are written after the names.
        length (`int`, *optional*): L, in place of the longest line's.

    Returns:
        `tag_input_ids` int64 `(N, L)`, `tag_attention_mask` int64 `(N, L)`, `tag_scores` float32 `(N, L)`: a token of a
        tag carries the tag's score, special tokens and commas the mean score of the image's tags, padding 0.
    """
    limit = tokenizer.model_max_length if length is None else min(length, tokenizer.model_max_length)
    with_tags = [index for index, tags in enumerate(tags_of_images) if tags]
    rows = {}
    if with_tags:
        lines = [tag_line(tags_of_images[index], with_scores) for index in with_tags]
        encoded = tokenizer(
            [line for line, _ in lines], return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        for place, index in enumerate(with_tags):
            ids, offsets = encoded["input_ids"][place], encoded["offset_mapping"][place]
            tags, owner = tags_of_images[index], lines[place][1]
            if len(ids) > limit:
                ids, offsets, tags, owner = _fitting_line(tags, offsets, owner, tokenizer, with_scores, limit)
            rows[index] = (ids, _token_scores(tags, offsets, owner))
    if length is None:
        length = max((len(ids) for ids, _ in rows.values()), default=0)
    size = (len(tags_of_images), length)
    batch = {
        "tag_input_ids": np.zeros(size, dtype=np.int64),
        "tag_attention_mask": np.zeros(size, dtype=np.int64),
        "tag_scores": np.zeros(size, dtype=np.float32),
    }
    for index, (ids, scores) in rows.items():
        batch["tag_input_ids"][index, : len(ids)] = ids
        batch["tag_attention_mask"][index, : len(ids)] = 1
        batch["tag_scores"][index, : len(ids)] = scores
    return batch


def _token_scores(tags: Sequence[Tag], offsets: Sequence[tuple[int, int]], owner: list[int]) -> list[float]:
    """The score of each token: its tag's, or the mean for special tokens (empty offsets) and separators."""
    mean = sum(tag.score for tag in tags) / len(tags)
    owners = [owner[end - 1] if end > start else -1 for start, end in offsets]
    return [mean if index < 0 else tags[index].score for index in owners]


def _fitting_line(
    tags: Sequence[Tag],
    offsets: Sequence[tuple[int, int]],
    owner: list[int],
    tokenizer: Any,
    with_scores: bool,
    limit: int,
) -> tuple[list[int], list[tuple[int, int]], Sequence[Tag], list[int]]:
    """Tokens of the longest prefix of whole tags that the tag encoder can read; at least of a part of the first tag."""
    logger.warning_once(
        f"The tags of an image are longer than the {limit} tokens that the tag encoder reads: the longest prefix by "
        "score is kept (said once)."
    )
    text_ends = [end for start, end in offsets if end > start]
    num_special = len(offsets) - len(text_ends)
    # The first token without room belongs to the first tag that is cut, or is the comma before it.
    owners_without_room = [owner[end - 1] for end in text_ends[limit - num_special :]]
    tags = tags[: max(1, next(index for index in owners_without_room if index >= 0))]
    line, owner = tag_line(tags, with_scores)
    encoded = tokenizer(
        line, return_offsets_mapping=True, return_attention_mask=False, truncation=True, max_length=limit
    )
    return encoded["input_ids"], encoded["offset_mapping"], tags, owner
