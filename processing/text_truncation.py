"""Shortening a tokenized prompt: ordinary text goes, image placeholders and special tokens stay.

Cutting a row at its end would drop placeholders of the last image, and the model would be handed more image features
than places for them; dropping control tokens would tear a chat template.
"""

from collections.abc import Container, Sequence
from typing import Any

from transformers import BatchFeature


def tokenize_truncated(
    tokenizer: Any, prompts: list[str], text_kwargs: dict[str, Any], kept_ids: Container[int]
) -> BatchFeature:
    """
    Tokenizes B prompts and cuts their ordinary text at the tokenizer's `truncation_side`.

    Args:
        text_kwargs: options of the tokenizer; `max_length` is the tokenizer's own limit by default.
        kept_ids: as [`positions_to_keep`], which raises if they alone are too many.
    """
    options = dict(text_kwargs)
    padding: dict[str, Any] = {
        name: options.pop(name) for name in ("padding", "pad_to_multiple_of", "padding_side") if name in options
    }
    max_length = options.pop("max_length", None) or tokenizer.model_max_length
    for name in ("truncation", "return_tensors", "stride"):
        options.pop(name, None)
    encoded = tokenizer(prompts, **{**options, "padding": False, "verbose": False})
    kept = [positions_to_keep(row, kept_ids, max_length, tokenizer.truncation_side) for row in encoded["input_ids"]]
    rows = {
        name: [[row[position] for position in positions] for row, positions in zip(values, kept, strict=True)]
        for name, values in encoded.items()
    }
    if not padding.get("padding"):
        return BatchFeature(rows)
    offsets = rows.pop("offset_mapping", None)  # the one thing that `pad` leaves ragged
    if padding["padding"] == "max_length":
        padding["max_length"] = max_length
    padded = tokenizer.pad(rows, **padding)
    if offsets is not None:
        on_the_left = padding.get("padding_side", tokenizer.padding_side) == "left"
        gaps = [[(0, 0)] * (len(ids) - len(row)) for ids, row in zip(padded["input_ids"], offsets, strict=True)]
        padded["offset_mapping"] = [
            gap + row if on_the_left else row + gap for gap, row in zip(gaps, offsets, strict=True)
        ]
    return padded


def positions_to_keep(input_ids: Sequence[int], kept_ids: Container[int], max_length: int, side: str) -> list[int]:
    """Positions of a row that remain when it is shortened to `max_length` tokens.

    Args:
        input_ids: one row of T token ids, without padding.
        kept_ids: ids that are never cut: the image placeholder and the special tokens.
        max_length (`int`): tokens that may remain.
        side (`str`): `"right"` cuts the last text tokens, `"left"` the first ones.

    Raises:
        ValueError: the tokens that may not be cut are more than `max_length`.
    """
    excess = len(input_ids) - max_length
    if excess <= 0:
        return list(range(len(input_ids)))
    text_positions = [position for position, token in enumerate(input_ids) if token not in kept_ids]
    num_kept = len(input_ids) - len(text_positions)
    if num_kept > max_length:
        raise ValueError(
            f"max_length={max_length} is less than the {num_kept} image placeholders and special tokens of this "
            f"prompt, which are never cut: set max_length to at least {num_kept}, or give fewer images."
        )
    cut = set(text_positions[:excess] if side == "left" else text_positions[-excess:])
    return [position for position in range(len(input_ids)) if position not in cut]
