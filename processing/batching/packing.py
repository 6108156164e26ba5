"""Packing: several short samples in one row, apart from one another, so that little of a batch is padding.

Positions begin anew with every sample and no attention mask is given: transformers' decoders then let a token attend to
its own sample alone (block-diagonal attention). Samples of one batch are packed with one another, so a step sees the
same samples as without packing, and its loss is the same.
"""

from collections.abc import Sequence

import torch
from transformers import BatchFeature

from .collators import IGNORED, Records, TrainingCollator


def packed_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which samples share a row: the longest first, each into the first row with room for it.

    Args:
        lengths: tokens of each sample.
        capacity (`int`): tokens of a row; a longer sample gets a row of its own.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        place = next((place for place, room in enumerate(free) if room >= lengths[sample]), None)
        if place is None:
            bins.append([])
            free.append(capacity)
            place = len(bins) - 1
        bins[place].append(sample)
        free[place] -= lengths[sample]
    return bins


def padding_places(batch: BatchFeature | dict[str, torch.Tensor]) -> torch.Tensor:
    """Which places of a batch are padding, (B, T) bool: by its attention mask, or by its positions where it is packed.

    Padding of a packed row stands at position 0, token by token; a sample's position 0 is followed by its 1.
    """
    if "attention_mask" in batch:
        return ~batch["attention_mask"].bool()  # (B, T)
    positions = batch["position_ids"]  # (B, T)
    following = torch.nn.functional.pad(positions[:, 1:], (0, 1))  # (B, T)
    return (positions == 0) & (following != 1)  # (B, T)


class PackingCollator:
    """Makes packed training batches of what a [`TrainingCollator`] makes rows of.

    Args:
        collator ([`TrainingCollator`]): of a decoder-only model.
        capacity (`int`): tokens of a packed row; a batch's rows are as long as its fullest one.

    A batch holds `input_ids`, `position_ids` and `labels` [R, T] for R rows (fewer than samples), the images in the
    order in which the rows name them, and `use_cache=False`, for a cache would end the samples' separation; `task_ids`
    [R, T] where the model tells tasks apart. The first label of a sample is ignored, because the token before it
    belongs to another one.

    Raises:
        ValueError: the collator is one of an encoder-decoder.
    """

    def __init__(self, collator: TrainingCollator, capacity: int):
        if collator.is_encoder_decoder:
            raise ValueError(
                "packing needs a decoder-only language model: an encoder-decoder's cross-attention would read the "
                "other samples of a row; leave data.packing out"
            )
        if capacity < 2:
            raise ValueError(f"capacity={capacity} is no row of several samples: give its tokens, such as 1024")
        self.collator, self.capacity = collator, capacity

    def __call__(self, records: Records) -> BatchFeature:
        if any(record is None for record in records):
            return BatchFeature({})
        fitted, inputs = self.collator.fitted_rows(records)
        processor = self.collator.processor
        run = processor.num_image_tokens + processor.num_prompt_tokens
        images = [prompt.count(processor.image_token_id) // run for prompt, _ in fitted]
        firsts = [sum(images[:sample]) for sample in range(len(fitted))]
        bins = packed_bins([len(prompt) + len(answer) for prompt, answer in fitted], self.capacity)

        task_of = inputs.pop("task_ids", None)  # (B,)
        ids, labels, positions, tasks = [], [], [], []
        for samples in bins:
            ids.append([token for sample in samples for part in fitted[sample] for token in part])
            labels.append([label for sample in samples for label in _labels(*fitted[sample])])
            positions.append([place for sample in samples for place in range(sum(map(len, fitted[sample])))])
            if task_of is not None:
                tasks.append([int(task_of[sample]) for sample in samples for part in fitted[sample] for _ in part])
        order = torch.tensor(
            [firsts[sample] + n for samples in bins for sample in samples for n in range(images[sample])],
            dtype=torch.long,
        )  # (N,)
        padded, multiple = self.collator.padded, self.collator.pad_to_multiple_of
        return BatchFeature(
            {
                "input_ids": padded(ids, processor.tokenizer.pad_token_id, "right", multiple),  # (R, T)
                "position_ids": padded(positions, 0, "right", multiple),  # (R, T)
                "labels": padded(labels, IGNORED, "right", multiple),  # (R, T)
                **({} if task_of is None else {"task_ids": padded(tasks, 0, "right", multiple)}),  # (R, T)
                **{name: value[order] for name, value in inputs.items()},
                "use_cache": False,
            }
        )


def _labels(prompt: list[int], answer: list[int]) -> list[int]:
    labels = [IGNORED] * len(prompt) + answer
    return [IGNORED, *labels[1:]]
