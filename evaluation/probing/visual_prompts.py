"""A batch of prompts as the language model reads it, one picture each, with the place of every image token in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...processing.batching.collators import GenerationCollator
from .model_parts import ModelParts


@dataclass(frozen=True)
class VisualPrompts:
    """
    B prompts of length T with one picture each: P image tokens, K soft-prompt tokens.

    Attributes:
        parts, processor: of the model.
        embeddings (B, T, D): merged; a decoder-only model's padding is on the left, an encoder-decoder's on the right.
        attention_mask (B, T).
        image_places (B, P), prompt_places (B, K) long: where the image and soft-prompt tokens stand.
        tag_words (B, T) bool: words of the prompt that are names of tags.
        question_words (B, T) bool: the question's own, without those of the chat template around it.
        vision_norms (B, P): length of the vision tower's feature of each image token.
    """

    parts: ModelParts
    processor: Any
    embeddings: torch.Tensor
    attention_mask: torch.Tensor
    image_places: torch.Tensor
    prompt_places: torch.Tensor
    tag_words: torch.Tensor
    question_words: torch.Tensor
    vision_norms: torch.Tensor

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    def rows(self, chosen: Sequence[int]) -> "VisualPrompts":
        """Some of the prompts, at the same length."""
        tensors = {name: value[list(chosen)] for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **tensors)

    def image_tokens(self) -> torch.Tensor:
        """Embeddings of the image tokens, (B, P, D)."""
        return self.embeddings[torch.arange(len(self))[:, None], self.image_places]

    def with_image_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """The embeddings (B, T, D) with other image tokens (B, P, D)."""
        changed = self.embeddings.clone()
        changed[torch.arange(len(self))[:, None], self.image_places] = tokens.to(changed.dtype)
        return changed

    def places_of(self, chosen: torch.Tensor) -> torch.Tensor:
        """Image tokens chosen of P, (B, P) bool, as places in the sequence, (B, T) bool."""
        mask = torch.zeros_like(self.attention_mask, dtype=torch.bool)  # (B, T)
        return mask.scatter(1, self.image_places, chosen.to(mask.device))

    @property
    def position_ids(self) -> torch.Tensor:
        """(B, T), counted from the first attended position."""
        return (self.attention_mask.cumsum(-1) - 1).clamp_min(0)


@torch.no_grad()
def read_prompts(
    parts: ModelParts,
    processor: Any,
    images: Sequence[Any],
    questions: Sequence[str],
    tags: Sequence[Sequence[Any]] | None = None,
) -> VisualPrompts:
    """
    Asks one question about each picture, in the words of the processor's chat template.

    Args:
        images, questions: B of each.
        tags (*optional*): per picture (name, score) pairs; only Poise models know tags.

    Raises:
        ValueError: the processor has no chat template, or makes another number of image tokens than the model.
    """
    tags = [[] for _ in images] if tags is None else tags
    if parts.model.config.model_type == "poise":
        inputs, texts, num_tag_words = _poise_inputs(parts, processor, images, questions, tags)
    else:
        inputs, texts = _llava_inputs(processor, images, questions)
        num_tag_words = [0] * len(images)
    question_words = _question_words(processor, texts, inputs["attention_mask"])  # (B, T)
    inputs = {name: value.to(parts.model.device) for name, value in inputs.items()}
    placeholders = inputs["input_ids"] == parts.image_token_id  # (B, T)
    run = parts.num_image_tokens + parts.num_prompt_tokens
    if not bool((placeholders.sum(-1) == run).all()):
        raise ValueError(
            f"processor writes {placeholders.sum(-1).tolist()} placeholders for one picture, the model has {run} image "
            "and soft-prompt tokens: use the processor that was saved with the model."
        )
    places = placeholders.nonzero()[:, 1].view(-1, run)  # (B, P + K)
    norms: list[torch.Tensor] = []

    def measure(module: Any, args: tuple) -> None:
        lengths = args[0].float().norm(dim=-1)  # (B, S, P) of S layers, or (B, P)
        norms.append(lengths.mean(1) if lengths.dim() == 3 else lengths)

    handle = parts.projector.register_forward_pre_hook(measure)
    try:
        embeddings = parts.merged_embeddings(inputs)  # (B, T, D)
    finally:
        handle.remove()
    behind = torch.arange(placeholders.shape[1], device=places.device) - places[:, -1:]  # (B, T) 1 is next to the run
    count = torch.tensor(num_tag_words, device=places.device)[:, None]  # (B, 1)
    return VisualPrompts(
        parts=parts,
        processor=processor,
        embeddings=embeddings,
        attention_mask=inputs["attention_mask"],
        image_places=places[:, : parts.num_image_tokens],
        prompt_places=places[:, parts.num_image_tokens :],
        tag_words=(behind > 0) & (behind <= count),
        question_words=question_words.to(places.device),
        vision_norms=norms[0],
    )


def _poise_inputs(
    parts: ModelParts, processor: Any, images: Sequence[Any], questions: Sequence[str], tags: Sequence[Sequence[Any]]
) -> tuple[dict[str, torch.Tensor], list[str], list[int]]:
    """Inputs, the texts that they are made of, and how many tokens behind each picture are words of its tags."""
    collator = GenerationCollator(processor, is_encoder_decoder=parts.is_encoder_decoder)
    records = [
        {"task": "vqa", "question": question, "image": image, "tags": list(some)}
        for image, question, some in zip(images, questions, tags, strict=True)
    ]
    texts, rows, inputs = collator.rows(records)
    side = "right" if parts.is_encoder_decoder else "left"
    inputs["input_ids"] = collator.padded(rows, processor.tokenizer.pad_token_id, side)  # (B, T)
    inputs["attention_mask"] = collator.padded([[1] * len(row) for row in rows], 0, side)  # (B, T)
    # Before its placeholders are written out the same prompt has one token for the picture and none for its tags.
    bare = _bare_ids(processor, texts)
    run = parts.num_image_tokens + parts.num_prompt_tokens
    num_words = [len(row) - run - (len(short) - 1) for row, short in zip(rows, bare, strict=True)]
    return inputs, texts, num_words


def _llava_inputs(
    processor: Any, images: Sequence[Any], questions: Sequence[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    if processor.chat_template is None:
        raise ValueError(
            "processor.chat_template is missing, so it is not known how this model is asked: set it, such as "
            "'USER: <image>\\n{{ messages[0].content[1].text }} ASSISTANT:'."
        )
    texts = _written(processor, questions)
    bos = processor.tokenizer.bos_token
    inputs = processor(
        images=list(images),
        text=texts,
        padding=True,
        padding_side="left",
        add_special_tokens=not (bos and texts[0].startswith(bos)),
        return_tensors="pt",
    )
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}, texts


def _written(processor: Any, questions: Sequence[str]) -> list[str]:
    """Questions about one picture each in the words of the chat template."""
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}] for question in questions
    ]
    return processor.apply_chat_template(chats, add_generation_prompt=True)


def _bare_ids(processor: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts whose picture is one placeholder yet and whose tags are not written."""
    bos = processor.tokenizer.bos_token
    return processor.tokenizer(list(texts), add_special_tokens=not (bos and texts[0].startswith(bos)))["input_ids"]


def _question_words(processor: Any, texts: Sequence[str], attention_mask: torch.Tensor) -> torch.Tensor:
    """Where prompts differ from the one that asks nothing, (B, T) bool; nothing grows behind a question."""
    empty = _bare_ids(processor, _written(processor, [""]))[0]
    chosen = torch.zeros_like(attention_mask, dtype=torch.bool)  # (B, T)
    for row, ids in enumerate(_bare_ids(processor, texts)):
        before = _common(ids, empty)
        behind = min(_common(ids[::-1], empty[::-1]), len(empty) - before, len(ids) - before)
        end = int(attention_mask[row].nonzero()[-1]) + 1 - behind
        chosen[row, end - (len(ids) - before - behind) : end] = True
    return chosen


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
