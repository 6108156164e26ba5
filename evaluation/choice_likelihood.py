"""Log-likelihood of given answers under a model: for multiple choice, and for weighing evidence without sampling."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from poise.processing.collators import IGNORED, TrainingCollator


@torch.no_grad()
def answer_log_likelihoods(
    model: Any, collator: TrainingCollator, records: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> tuple[list[float], list[int]]:
    """Summed log-likelihood of one answer per record, its end-of-text token included.

    The router sees the prompt alone, as when it generates.

    Args:
        model (`PoiseForConditionalGeneration`): in evaluation mode.
        collator ([`TrainingCollator`]): made with `return_prompt_mask=True`, and without `max_length`, which would cut
            answers.
        records: task records with their images and tags; their own answers are not read.
        answers (`Sequence[str]`): one per record.

    Returns:
        `tuple[list[float], list[int]]`: log-likelihoods in nats, and how many tokens each sums over.
    """
    asked = [{**record, "task": "vqa", "answers": [answer]} for record, answer in zip(records, answers, strict=True)]
    inputs = collator(asked).to(model.device)
    labels = inputs.pop("labels")  # (B, T)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)  # (B, T)
        logits = model(**inputs).logits  # (B, T, V)
    else:
        logits, labels = model(**inputs).logits[:, :-1], labels[:, 1:]  # (B, T - 1, V), (B, T - 1)
    counted = labels != IGNORED  # (B, T)
    # Only the answers' positions are normalized: a vocabulary of 150,000 words over a whole prompt is gigabytes.
    losses = torch.nn.functional.cross_entropy(logits[counted].float(), labels[counted], reduction="none")  # (tokens,)
    sums = torch.zeros(labels.shape, dtype=losses.dtype, device=losses.device)  # (B, T)
    sums[counted] = -losses
    return sums.sum(-1).tolist(), counted.sum(-1).tolist()
