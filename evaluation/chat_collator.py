"""Prompts of task records for any VLM of transformers, through its own processor and chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AddedToken, BatchFeature

from ..modeling.contrast_inputs import image_token
from ..processing.backbone_processors import USUAL_QUESTION
from ..processing.prompts import Prompts, images_of
from ..processing.questions import tokenize_questions
from ..processing.records.task_record_files import opened_record
from ..processing.tag_tokens import tokenize_tags
from ..processing.tags import check_tags
from .decoding import is_encoder_decoder

TAG_WORDS = "The image shows: {tags}. "
# Types of answer tokens in `token_type_ids` by `model_type`, 0 everywhere else. PaliGemma reads a prompt (of type 0) in
# both directions: answers are of another type, or they would be read in advance.
ANSWER_TOKEN_TYPE = {"paligemma": 1}


class ChatCollator:
    """Makes prompts for `generate` of task records, and hands the records on beside them.

    A processor with a chat template is given messages; one without (BLIP-2, PaliGemma, Florence-2) the question alone,
    behind the image's token where it does not write that itself.

    Args:
        processor: of the model, loaded with `AutoProcessor`.
        config: of the model.
        prompts ([`Prompts`], *optional*): the instructions around captions and expressions.
        tag_words (`bool`, *optional*, defaults to `True`): put a record's tags, most certain first, before the question
            as words; otherwise they are left out.
        tag_tokenizer (*optional*): of the tag encoder of a [`RoutedVlm`], which has a stream for tags.

    Returns `(inputs, records)`: a `BatchFeature` with nothing but the model's inputs, and the list of records.

    Raises:
        ValueError: a record without an image, where the processor cannot do without.
    """

    def __init__(
        self,
        processor: Any,
        config: Any,
        prompts: Prompts | None = None,
        tag_words: bool = True,
        tag_tokenizer: Any = None,
    ):
        self.processor, self.config, self.tag_tokenizer = processor, config, tag_tokenizer
        self.tag_words = tag_words and tag_tokenizer is None
        self.prompts = prompts or Prompts()
        self.is_encoder_decoder = is_encoder_decoder(config)
        tokenizer = getattr(processor, "tokenizer", processor)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if hasattr(processor, "num_query_tokens") and isinstance(processor.image_token, str):
            # BLIP-2's processor expects the object that it makes itself, but loads a saved one as text.
            processor.image_token = AddedToken(processor.image_token, normalized=False, special=True)

    def question(self, record: Mapping[str, Any]) -> str:
        """What is asked about a record, its tags before it."""
        found = [tag for _, tags in images_of(record) for tag in tags] if self.tag_words else []
        tags = dict.fromkeys(name for name, _ in sorted(found, key=lambda tag: -tag[1]))
        return (TAG_WORDS.format(tags=", ".join(tags)) if tags else "") + self.prompts.question(record)

    def messages(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A chat of one user message."""
        images = [{"type": "image", "image": image} for image, _ in images_of(record)]
        return [{"role": "user", "content": [*images, {"type": "text", "text": self.question(record)}]}]

    def prompt_text(self, record: Mapping[str, Any]) -> str:
        """The prompt as it is written before placeholders are repeated."""
        if getattr(self.processor, "chat_template", None) is None:
            return self.question(record)
        return self.processor.apply_chat_template([self.messages(record)], add_generation_prompt=True, tokenize=False)[
            0
        ]

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> tuple[BatchFeature, list[Mapping[str, Any]]]:
        """`(inputs, records)`."""
        records = [opened_record(record) for record in records]
        inputs = self._prompt_inputs(records)
        if self.tag_tokenizer is not None:
            of_images = [
                {"tags": tags, "question": self.question(record)} for record in records for _, tags in images_of(record)
            ]
            if of_images:  # tokenizers refuse an empty list
                inputs.update(router_inputs(of_images, self.tag_tokenizer))
        return inputs, list(records)

    def _prompt_inputs(self, records: Sequence[Mapping[str, Any]]) -> Any:
        options = {"padding": True, "padding_side": "right" if self.is_encoder_decoder else "left"}
        if getattr(self.processor, "chat_template", None) is not None:
            inputs = self.processor.apply_chat_template(
                [self.messages(record) for record in records],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=options,
            )
            return inputs
        images = [[image for image, _ in images_of(record)] for record in records]
        for record, own in zip(records, images, strict=True):
            if len(own) != 1:
                raise ValueError(
                    f"record {record['id']!r} has {len(own) or 'no'} images, and processor="
                    f"{type(self.processor).__name__} has no chat template to write a prompt for them: leave it out."
                )
        questions = [self.question(record) for record in records]
        token, token_id = getattr(self.processor, "image_token", None), image_token(self.config)
        if type(self.processor).__name__ == "PaliGemmaProcessor":  # adds it, too, and says so for every batch
            return self._processed(images, [f"{token}{question}" for question in questions], options)
        inputs = self._processed(images, questions, options)
        if token is not None and token_id is not None and not bool((inputs["input_ids"] == token_id).any()):
            inputs = self._processed(images, [f"{token}\n{question}" for question in questions], options)
        return inputs

    def _processed(self, images: list[list[Any]], questions: list[str], options: dict[str, Any]) -> Any:
        flat = [image for some in images for image in some]
        inputs = self.processor(images=flat, text=questions, return_tensors="pt", **options)
        inputs.pop("labels", None)  # of a prompt without an answer
        return inputs


def router_inputs(images: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """What the router of a [`RoutedVlm`] reads beside N images, of their `tags` and of the `question` about each."""
    tags = tokenize_tags([check_tags(image["tags"]) for image in images], tokenizer, with_scores=False)
    questions = tokenize_questions([image["question"] for image in images], tokenizer, USUAL_QUESTION)
    return {name: torch.from_numpy(rows) for name, rows in (tags | questions).items()}


@torch.no_grad()
def chat_log_likelihoods(
    model: Any, collator: ChatCollator, records: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> tuple[list[float], list[int]]:
    """
    Summed log-likelihood in nats of one answer per record, its end token included, and how many tokens each sums over.

    One pair at a time: padding between a prompt and its answer is not something that every family can mask.
    """
    tokenizer = getattr(collator.processor, "tokenizer", collator.processor)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    likelihoods, counts = [], []
    for record, answer in zip(records, answers, strict=True):
        inputs = collator([record])[0].to(model.device)
        inputs = inputs.to(model.dtype) if model.dtype in (torch.float16, torch.bfloat16) else inputs
        gap = "" if collator.prompt_text(record)[-1:].isspace() or collator.is_encoder_decoder else " "
        ids = [*tokenizer.encode(gap + answer, add_special_tokens=False), *end]
        tokens = torch.tensor([ids], device=model.device)  # (1, A)
        if collator.is_encoder_decoder:
            logits = model(**inputs, decoder_input_ids=_shifted_right(model, tokens)).logits  # (1, A, V)
        else:
            length = inputs["input_ids"].shape[1]
            for name, value in dict(inputs).items():
                if torch.is_tensor(value) and value.shape[:2] == (1, length) and "pixel" not in name:
                    added = tokens if name == "input_ids" else value[:, -1:].expand(-1, len(ids), *value.shape[2:])
                    if name == "token_type_ids" and model.config.model_type in ANSWER_TOKEN_TYPE:
                        added = torch.full_like(tokens, ANSWER_TOKEN_TYPE[model.config.model_type])
                    inputs[name] = torch.cat([value, added.to(value.dtype)], dim=1)
            logits = model(**inputs).logits[:, -len(ids) - 1 : -1]  # (1, A, V)
        chosen = logits.float().log_softmax(-1).gather(-1, tokens[..., None])  # (1, A, 1)
        likelihoods.append(float(chosen.sum()))
        counts.append(len(ids))
    return likelihoods, counts


def _shifted_right(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What a decoder reads while it says `tokens` (1, A)."""
    text = model.config.get_text_config(decoder=True)
    sources = (model.generation_config, text, model.config)
    start = next(s for source in sources if (s := getattr(source, "decoder_start_token_id", None)) is not None)
    return torch.cat([torch.full_like(tokens[:, :1], start), tokens[:, :-1]], dim=1)
