"""What a model answers to a batch of prompts given as embeddings, and how probable a given answer is to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...processing.batching.collators import IGNORED, TrainingCollator
from .model_parts import ModelParts
from .visual_prompts import VisualPrompts


@torch.no_grad()
def greedy_answers(
    prompts: VisualPrompts, embeddings: torch.Tensor | None = None, max_new_tokens: int = 16
) -> list[list[int]]:
    """
    Token ids of the B answers, without the end token and what follows it.

    Args:
        embeddings (B, T, D) (*optional*): in place of the prompts' own, such as with tokens replaced.
    """
    parts, tokenizer = prompts.parts, prompts.processor.tokenizer
    embeddings = prompts.embeddings if embeddings is None else embeddings
    inputs = {"inputs_embeds": embeddings}
    if parts.is_encoder_decoder:
        inputs = {"encoder_outputs": parts.reader(inputs_embeds=embeddings, attention_mask=prompts.attention_mask)}
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    tokens = parts.model.generate(
        **inputs,
        attention_mask=prompts.attention_mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=padding,
    )  # (B, new), for an encoder-decoder (B, 1 + new)
    ends = parts.model.generation_config.eos_token_id
    ends = {*([ends] if isinstance(ends, int) else ends or []), tokenizer.eos_token_id, tokenizer.pad_token_id}
    answers = []
    for row in tokens[:, int(parts.is_encoder_decoder) :].tolist():
        stop = next((place for place, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:stop])
    return answers


def answer_texts(prompts: VisualPrompts, answers: Sequence[Sequence[int]]) -> list[str]:
    """Answers as text."""
    decode = prompts.processor.tokenizer.decode
    return [decode(answer, skip_special_tokens=True).strip() for answer in answers]


def answer_log_probabilities(
    prompts: VisualPrompts,
    answers: Sequence[Sequence[int]],
    embeddings: torch.Tensor | None = None,
    counted_from: Sequence[int] | None = None,
) -> torch.Tensor:
    """
    Log-probability (B,) in nats of each answer after its prompt.

    Args:
        answers: B lists of token ids, none of them empty.
        embeddings (B, T, D) (*optional*): in place of the prompts' own; gradients flow back into them.
        counted_from (*optional*): of each answer the first token that counts; those before it are given.

    Raises:
        ValueError: an answer is empty.
    """
    if not all(answers):
        raise ValueError(
            f"answers[{[bool(answer) for answer in answers].index(False)}] is empty: it has no probability."
        )
    parts = prompts.parts
    embeddings = prompts.embeddings if embeddings is None else embeddings
    device, longest = embeddings.device, max(map(len, answers))
    starts = [0] * len(answers) if counted_from is None else list(counted_from)
    targets = torch.zeros(len(answers), longest, dtype=torch.long, device=device)  # (B, A)
    real, counted = torch.zeros_like(targets), torch.zeros_like(targets, dtype=torch.bool)  # (B, A)
    for row, (answer, start) in enumerate(zip(answers, starts, strict=True)):
        targets[row, : len(answer)] = torch.tensor(answer, device=device)
        real[row, : len(answer)] = 1
        counted[row, start : len(answer)] = True
    if parts.is_encoder_decoder:
        decoder_ids = parts.model.prepare_decoder_input_ids_from_labels(targets.masked_fill(real == 0, -100))  # (B, A)
        logits = parts.model(
            inputs_embeds=embeddings,
            attention_mask=prompts.attention_mask,
            decoder_input_ids=decoder_ids,
            use_cache=False,
        ).logits  # (B, A, V)
    else:
        spoken = parts.model.get_input_embeddings()(targets).to(embeddings.dtype)  # (B, A, D)
        mask = torch.cat([prompts.attention_mask, real], dim=1)  # (B, T + A)
        logits = parts.model(
            inputs_embeds=torch.cat([embeddings, spoken], dim=1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits[:, :-1]  # (B, A, V)
    chosen = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]  # (B, A)
    return (chosen * counted).sum(-1)


def answer_token_ids(
    parts: ModelParts, processor: Any, records: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> list[list[int]]:
    """
    Tokens of given answers as the model would write them behind the records' questions, its end token last.

    Args:
        records: of which the questions are read. answers: one for each.
    """
    if parts.model.config.model_type == "poise":
        collator = TrainingCollator(processor, is_encoder_decoder=parts.is_encoder_decoder)
        # The tokens of an answer depend on the words around it alone.
        asked = [
            {"id": "", "task": "vqa", "image": None, "question": record["question"], "answers": [answer]}
            for record, answer in zip(records, answers, strict=True)
        ]
        labels = collator(asked)["labels"]  # (B, T)
        return [row[row != IGNORED].tolist() for row in labels]
    tokenizer = processor.tokenizer
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [[*tokenizer(f" {answer.strip()}", add_special_tokens=False)["input_ids"], *ends] for answer in answers]
