"""Packed rows and rows of like length: whether packing is exact for a model, asked of the model itself, for what keeps
samples apart differs by architecture; and how long records become as rows of tokens, without opening an image.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from ...processing import TrainingCollator
from ...processing.records.record_data import rows_of
from ..feature_cache.cached_records import ImageOfSize, without_pixels

FIRST, SECOND = 5, 7  # tokens of the two samples of the probe


def check_packing(model: Any) -> None:
    """
    Raises:
        ValueError: packed samples would not be what they are alone: the language model is an encoder-decoder, or in its
            attention one sample of a row changes another one.
    """
    config = model.config
    if config.is_encoder_decoder:
        raise ValueError(
            "data.packing needs a decoder-only language model: an encoder-decoder's cross-attention would read the "
            "other samples of a row; leave it out"
        )
    leak, shift = packing_errors(model.model.language_model)
    attention = config.text_config._attn_implementation
    if leak > 0:
        raise ValueError(
            f"data.packing is not exact for {type(model.model.language_model).__name__} with "
            f"attn_implementation={attention!r}: one sample of a row changes another one (by {leak:.2g}); use 'sdpa', "
            "'eager' or 'flash_attention_2', or leave packing out"
        )
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 5e-2
    if shift > tolerance:
        raise ValueError(
            f"data.packing is not exact for {type(model.model.language_model).__name__}: a sample behind another one "
            f"differs from the sample alone (by {shift:.2g}), so it does not follow position_ids; leave packing out"
        )


@torch.no_grad()
def packing_errors(language_model: Any) -> tuple[float, float]:
    """
    How far a packed sample is from itself, on a row of two samples of random tokens.

    Returns:
        `leak`: how much the second sample's hidden states change with the first sample, relative to their size; exact
            attention gives exactly 0, in every precision. `shift`: how much they differ from the sample alone.
    """
    was_training = language_model.training
    language_model.eval()
    base, device = language_model.base_model, language_model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    vocabulary = language_model.config.vocab_size
    tokens = torch.randint(3, vocabulary, (2, FIRST + SECOND), generator=generator)  # (2, T)
    tokens[1, FIRST:] = tokens[0, FIRST:]  # the second sample is the same in both rows
    positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None].expand(2, -1)  # (2, T)

    def states(ids, places):
        output = base(input_ids=ids.to(device), position_ids=places.to(device), use_cache=False)
        return output.last_hidden_state.float()  # (B, T, D)

    try:
        # Row by row: both calls then take the same kernels, so that what is not leaked is equal to the last bit.
        one, other = (states(tokens[row : row + 1], positions[:1])[:, FIRST:] for row in range(2))  # (1, T2, D)
        alone = states(tokens[:1, FIRST:], positions[:1, FIRST:])  # (1, T2, D)
    finally:
        language_model.train(was_training)
    size = one.abs().max()
    return float((one - other).abs().max() / size), float((one - alone).abs().max() / size)


BLOCK = 512  # records tokenized together


def row_lengths(records: Any, collator: TrainingCollator) -> list[int]:
    """
    Tokens of each record's row, prompt and answer, after the cut to `max_length`.

    A `length` column that the records bring is taken as it is. The length of a spoken box depends on the image's
    size, which is not read: there the count may be off by a token or two.

    Args:
        records: a map-style data set of task records.
        collator ([`TrainingCollator`]): makes the rows.
    """
    given = getattr(records, "lengths", None)
    if given is not None:
        return list(given)
    bare = copy.copy(collator)
    bare.processor = without_pixels(collator.processor)
    lengths: list[int] = []
    starts = range(0, len(records), BLOCK)
    for start in tqdm(starts, desc="row lengths", unit="block", disable=len(starts) < 20, leave=False):
        block = range(start, min(start + BLOCK, len(records)))
        unopened = [{**record, "image": _stand_in(record)} for record in rows_of(records, block, images=False)]
        lengths += [len(prompt) + len(answer) for prompt, answer in bare.fitted_rows(unopened)[0]]
    return lengths


def _stand_in(record: Mapping[str, Any]) -> Any:
    """An empty image that a box of the record lies in; a list of them for several, `None` for none."""
    if record["image"] is None or isinstance(record["image"], ImageOfSize):
        return record["image"]
    if isinstance(record["image"], list):
        return [Image.new("1", (1, 1)) for _ in record["image"]]
    x, y, width, height = record.get("bbox") or (0, 0, 1, 1)
    return Image.new("1", (max(1, int(x + width) + 1), max(1, int(y + height) + 1)))
