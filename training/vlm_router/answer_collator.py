"""Prompts with their answers for any VLM: its own chat template, the answers behind it, tags beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...evaluation.probing.answers import decoder_start_id, padded_answers
from ...evaluation.probing.parts import ModelParts
from ...evaluation.probing.prompt_batch import PromptBatch
from ...evaluation.probing.prompt_reading import chat_prompts
from ...processing.batching.collators import IGNORED
from ...processing.prompts import Prompts, target_text


def answer_logits(
    logits: torch.Tensor, labels: torch.Tensor, is_encoder_decoder: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The logits that say each label, and the labels: (B, T', V) and (B, T').

    Args:
        logits (B, T, V): a model's; families that put something before the words have more than labels.
        labels (B, T): of [`AnswerCollator`].
    """
    logits = logits[:, -labels.shape[1] :]  # (B, T, V)
    return (logits, labels) if is_encoder_decoder else (logits[:, :-1], labels[:, 1:])


class AnswerCollator:
    """
    Makes training batches of task records: the inputs of a VLM's `forward`, with `labels` (B, T) for the answers alone.

    Args:
        parts: of the model. processor: its own.
        seed (`int`, *optional*, defaults to 0): chooses among several captions.

    Raises:
        ValueError: a record without an image.
    """

    def __init__(self, parts: ModelParts, processor: Any, seed: int = 0):
        self.parts, self.processor, self.seed = parts, processor, seed
        self.epoch = 0

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        for record in records:
            if record["image"] is None:
                raise ValueError(f"record {record['id']!r} has no image, which a router is trained on: leave it out.")
        inputs = chat_prompts(
            self.parts,
            self.processor,
            [record["image"] for record in records],
            [Prompts().question(record) for record in records],
            [record.get("tags") or [] for record in records],
        )[0]
        tokens, real = padded_answers([self._answer(record) for record in records], "cpu")  # (B, A) each
        prompts, labels = PromptBatch(self.parts, inputs), tokens.masked_fill(real == 0, IGNORED)  # (B, A)
        if self.parts.is_encoder_decoder:
            start = torch.full_like(tokens[:, :1], decoder_start_id(self.parts))
            inputs = {**prompts.forward_inputs(), "decoder_input_ids": torch.cat([start, tokens[:, :-1]], dim=1)}
            return {**inputs, "labels": labels}
        nothing = torch.full_like(prompts.input_ids, IGNORED)  # (B, T)
        return {**prompts.forward_inputs(tokens, real), "labels": torch.cat([nothing, labels], dim=1)}

    def _answer(self, record: Mapping[str, Any]) -> list[int]:
        """Tokens of a record's answer, its end token last."""
        tokenizer = self.processor.tokenizer
        gap = "" if self.parts.is_encoder_decoder else " "
        answer = target_text(record, self.seed, self.epoch).strip()
        ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [*tokenizer(gap + answer, add_special_tokens=False)["input_ids"], *ends]
