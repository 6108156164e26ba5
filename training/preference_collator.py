"""Batches for TRL's DPO trainer out of preference pairs, with the tags.

TRL's own collator renders chats to text before the processor sees them, which loses the tags of image entries. This one
makes rows exactly as fine-tuning and evaluation do, once with the chosen and once with the rejected answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from poise.processing import TrainingCollator
from poise.processing.collators import IGNORED


class PreferenceCollator:
    """
    Args:
        processor ([`PoiseProcessor`]): made for a decoder-only model.
        max_length (`int`, *optional*): longest row; text is cut, placeholders never.
        with_prompt_mask (`bool`, *optional*, defaults to `False`): say where the prompt ends, which a router of scope
            `"prompt"` asks for and TRL does not know.

    Returns `input_ids`, `attention_mask`, `completion_mask` (2B, T), B chosen rows and then B rejected ones, with the
    pictures and tags of 2B rows. An example may be a pair, or hold one under `"pair"`.
    """

    def __init__(self, processor: Any, max_length: int | None = None, with_prompt_mask: bool = False):
        self.rows = TrainingCollator(processor, max_length=max_length, return_prompt_mask=with_prompt_mask)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        pairs = [example.get("pair", example) for example in examples]
        records = [answered(pair, pair[choice]) for choice in ("chosen", "rejected") for pair in pairs]
        batch = dict(self.rows(records))
        batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()  # (2B, T)
        return batch


def answered(pair: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """The pair as a task record with one answer."""
    return {**pair, "captions" if pair["task"] == "caption" else "answers": [answer]}
