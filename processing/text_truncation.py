"""Shortening a tokenized prompt: ordinary text goes, image placeholders and special tokens stay.

Cutting a row at its end would drop placeholders of the last image, and the model would be handed more image features
than places for them; dropping control tokens would tear a chat template.
"""

from collections.abc import Container, Sequence


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
