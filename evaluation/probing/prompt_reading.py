"""Questions about images as a model is asked them: in the words of its processor's chat template."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer

from ...processing.batching.collators import GenerationCollator
from ...processing.processing_poise import QUESTION_INPUTS, TAG_INPUTS
from ...processing.prompts import Prompts
from ..chat_collator import ChatCollator
from .parts import ModelParts, placeholder_ids
from .prompt_batch import PromptBatch


def read_prompts(
    parts: ModelParts,
    processor: Any,
    images: Sequence[Any],
    questions: Sequence[str],
    tags: Sequence[Sequence[Any]] | None = None,
) -> PromptBatch:
    """
    Asks one question about each image.

    Args:
        images: B, of which none may be `None` unless all are: then it is asked without an image.
        questions: B.
        tags (*optional*): per image (name, score) pairs. A Poise model reads them as tags, for any other they are
            words before the question, unless a router on it reads them.

    Raises:
        ValueError: the processor does not belong to the model.
    """
    tags = [[] for _ in questions] if tags is None else tags
    if parts.family == "poise":
        inputs, texts, num_tag_words = _poise_inputs(parts, processor, images, questions, tags)
        empty = untagged = _poise_texts(processor, len(texts))
    else:
        inputs, texts, empty, untagged = chat_prompts(parts, processor, images, questions, tags)
        num_tag_words = None
    check_processor(parts, inputs)
    device, dtype = parts.model.device, parts.model.dtype
    inputs = {k: _moved(v, device, dtype) for k, v in inputs.items()}
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    asked = question_words(processor, texts, empty, mask)  # (B, T)
    if num_tag_words is not None:
        return _with_streams(PromptBatch(parts, inputs, question_words=asked), num_tag_words)
    tag_words = None
    if any(tags) and not parts.is_routed:
        tag_words = question_words(processor, texts, untagged, mask) & ~asked  # (B, T)
    return PromptBatch(parts, inputs, tag_words=tag_words, question_words=asked)


def read_records(
    parts: ModelParts,
    processor: Any,
    records: Sequence[Mapping[str, Any]],
    with_tags: bool = True,
    question: str | None = None,
) -> PromptBatch:
    """
    [`read_prompts`] of task records with one image each.

    Args:
        with_tags (`bool`, *optional*, defaults to `True`): tell the model the records' tags.
        question (`str`, *optional*): asked about every image; by default what each record asks.
    """
    return read_prompts(
        parts,
        processor,
        [record["image"] for record in records],
        [Prompts().question(record) if question is None else question for record in records],
        [record.get("tags") or [] if with_tags else [] for record in records],
    )


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A tensor where the model is, pixels in its number format."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def check_processor(parts: ModelParts, inputs: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: a word or an image that the model cannot read.
    """
    size = parts.model.get_input_embeddings().weight.shape[0]
    ids = inputs["input_ids"]
    outside = ids[(ids >= size)]
    known = placeholder_ids(parts.config) + [parts.image_token_id]
    if any(int(token) not in known for token in outside.unique()):
        raise ValueError(
            f"processor writes the token {int(outside.max())}, but the model knows {size} words: use the processor "
            "that was saved with the model."
        )


def _poise_inputs(
    parts: ModelParts, processor: Any, images: Sequence[Any], questions: Sequence[str], tags: Sequence[Sequence[Any]]
) -> tuple[dict[str, Any], list[str], list[int]]:
    """Inputs, the texts that they are made of, and how many tokens behind each image are words of its tags."""
    collator = GenerationCollator(processor, is_encoder_decoder=parts.is_encoder_decoder)
    records = [
        {"task": "vqa", "question": question, "image": image, "tags": list(some)}
        for image, question, some in zip(images, questions, tags, strict=True)
    ]
    texts, rows, inputs = collator.rows(records)
    side = "right" if parts.is_encoder_decoder else "left"
    inputs["input_ids"] = collator.padded(rows, processor.tokenizer.pad_token_id, side)  # (B, T)
    inputs["attention_mask"] = collator.padded([[1] * len(row) for row in rows], 0, side)  # (B, T)
    # Before its placeholders are written out the same prompt has one token for the image and none for its tags.
    bare = _bare_ids(processor, texts)
    run = [sum(token == parts.image_token_id for token in row) for row in rows]
    num_words = [len(row) - n - (len(short) - 1) for row, n, short in zip(rows, run, bare, strict=True)]
    return inputs, texts, num_words


def _with_streams(prompts: PromptBatch, num_tag_words: Sequence[int]) -> PromptBatch:
    """A Poise model's prompts with the places of soft prompt and tag words."""
    num_prompt = prompts.parts.config.num_prompt_tokens
    soft_prompt = torch.zeros_like(prompts.placeholders)  # (B, T)
    tag_words = torch.zeros_like(prompts.placeholders)  # (B, T)
    for row, count in enumerate(num_tag_words):
        places = prompts.placeholders[row].nonzero()[:, 0]
        if len(places):
            soft_prompt[row, places[len(places) - num_prompt :]] = True
            tag_words[row, int(places[-1]) + 1 : int(places[-1]) + 1 + count] = True
    return PromptBatch(prompts.parts, prompts.inputs, soft_prompt, tag_words, prompts.question_words)


def chat_prompts(
    parts: ModelParts, processor: Any, images: Sequence[Any], questions: Sequence[str], tags: Sequence[Sequence[Any]]
) -> tuple[dict[str, Any], list[str], list[str], list[str]]:
    """Inputs, the texts that they are made of, the same texts with nothing asked, and these without tags."""
    tokenizer = tag_tokenizer(parts.model.config.tag_encoder) if parts.is_routed else None
    collator = ChatCollator(processor, parts.config, tag_tokenizer=tokenizer)
    records = [
        {"id": str(number), "task": "vqa", "question": question, "image": _opened(image), "tags": list(some)}
        for number, (image, question, some) in enumerate(zip(images, questions, tags, strict=True))
    ]
    try:
        inputs, _ = collator(records)
    except (TypeError, AttributeError, LookupError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(
            f"processor={type(processor).__name__} cannot read an image with a question "
            f"({' '.join(str(error).split())[:160]}): use the processor that was saved with the model."
        ) from error
    known = inspect.signature(parts.vlm.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    unread = ("labels", "num_crops", "rows", "cols")  # of training, and notes about tiles
    routed = (*TAG_INPUTS, *QUESTION_INPUTS)
    kept = {k: v for k, v in inputs.items() if k not in unread and (k in known or takes_all or k in routed)}
    if images[0] is not None and not any("pixel" in name or "patches" in name for name in kept):
        raise ValueError(
            f"processor={type(processor).__name__} makes {', '.join(inputs)} of an image and a question, which "
            f"{type(parts.model).__name__} takes no image from: use the processor that was saved with the model."
        )
    missing = [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and name not in kept
    ]
    if missing:
        raise parts.cannot("answer without an image", f"its forward needs {', '.join(missing)}", "give an image")
    texts = [collator.prompt_text(record) for record in records]
    empty = [collator.prompt_text({**record, "question": ""}) for record in records]
    untagged = [collator.prompt_text({**record, "question": "", "tags": []}) for record in records]
    return kept, texts, empty, untagged


@functools.cache
def tag_tokenizer(name: str) -> Any:
    """The tokenizer of a tag encoder by its Hub id or folder, loaded once."""
    return AutoTokenizer.from_pretrained(name)


def _opened(image: Any) -> Any:
    return image.convert("RGB") if isinstance(image, Image.Image) and image.mode != "RGB" else image


def _poise_texts(processor: Any, count: int) -> list[str]:
    """Prompts of a Poise model that ask nothing."""
    content = [{"type": "image"}, {"type": "text", "text": ""}]
    return processor.apply_chat_template([[{"role": "user", "content": content}]] * count, add_generation_prompt=True)


def _bare_ids(processor: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts whose image is one placeholder yet and whose tags are not written."""
    tokenizer = processor.tokenizer
    bos = tokenizer.bos_token
    return tokenizer(list(texts), add_special_tokens=not (bos and texts[0].startswith(bos)))["input_ids"]


def question_words(
    processor: Any, texts: Sequence[str], empty: Sequence[str], attention_mask: torch.Tensor
) -> torch.Tensor:
    """Where prompts differ from those that ask nothing, (B, T) bool; nothing grows behind a question."""
    chosen = torch.zeros_like(attention_mask, dtype=torch.bool)  # (B, T)
    for row, (ids, without) in enumerate(zip(_bare_ids(processor, texts), _bare_ids(processor, empty), strict=True)):
        before = _common(ids, without)
        behind = min(_common(ids[::-1], without[::-1]), len(without) - before, len(ids) - before)
        end = int(attention_mask[row].nonzero()[-1]) + 1 - behind
        chosen[row, max(0, end - (len(ids) - before - behind)) : end] = True
    return chosen


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
