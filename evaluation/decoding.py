"""A decoding-time method by name, for whoever lets a model answer: `Decoding("vcd", {"alpha": 0.5}).generate(...)`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..modeling.contrastive_decoding import ContrastiveDecoding, first_tokens
from ..modeling.decoding_methods import METHODS, MODALITY_QUESTION, MODALITY_WORDS, check_method
from .model_errors import inner_vlm

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Decoding:
    """
    Args:
        name (`str`, *optional*, defaults to `"greedy"`): a key of `METHODS`.
        strengths (`Mapping[str, float]`, *optional*): in place of the published ones.
        seed (`int`, *optional*, defaults to 0): of the noise that "vcd" and "mad" put on images.

    Raises:
        ValueError: an unknown method or strength.

    Examples:
        >>> decoding = Decoding("m3id")
        >>> tokens = decoding.generate(model, processor, collator, records, max_new_tokens=16)  # doctest: +SKIP
    """

    name: str = "greedy"
    strengths: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_method(self.name, self.strengths)

    def describe(self) -> dict[str, Any]:
        """The method with all its strengths, as results state it."""
        described = {"name": self.name, **check_method(self.name, self.strengths)}
        return {**described, "seed": self.seed} if METHODS[self.name].contrast == "noise" else described

    def generate(
        self,
        model: Any,
        processor: Any,
        collator: Callable[[Sequence[Record]], tuple[Any, Any]],
        records: Sequence[Record],
        **settings: Any,
    ) -> tuple[torch.Tensor, Any]:
        """
        Tokens (B, T) of the model's answers to records, and the inputs that the collator made of them.

        Args:
            collator: records -> (inputs, records), such as [`GenerationCollator`] or [`ChatCollator`].
            **settings: of `generate`.
        """
        inputs = collator(records)[0].to(model.device)
        # A processor leaves pixels in float32, whatever the model computes in.
        inputs = inputs.to(model.dtype) if model.dtype in (torch.float16, torch.bfloat16) else inputs
        if self.name != "greedy":
            settings["custom_generate"] = self._method(model, processor, collator, records, inputs)
        return model.generate(**inputs, **settings), inputs

    def _method(self, model: Any, processor: Any, collator: Any, records: Sequence[Record], inputs: Any) -> Any:
        needs: dict[str, Any] = {}
        tokenizer = getattr(processor, "tokenizer", processor)
        if self.name == "shifted_yes":
            needs["yes_ids"] = first_tokens(tokenizer, "yes")
        if self.name == "mad":
            prompts = collator.prompts
            asked = [
                {**record, "task": "vqa", "question": MODALITY_QUESTION.format(question=prompts.question(record))}
                for record in records
            ]
            needs["modality_inputs"] = collator(asked)[0].to(model.device)
            needs["modality_ids"] = [first_tokens(tokenizer, word) for word in MODALITY_WORDS]
        return ContrastiveDecoding(model, inputs, self.name, self.seed, **needs, **self.strengths)


def is_encoder_decoder(config: Any) -> bool:
    """Whether a model's text is read by an encoder; some say so in the configuration of their language model alone."""
    return bool(
        getattr(config, "is_encoder_decoder", False) or getattr(config.get_text_config(), "is_encoder_decoder", False)
    )


def without_prompts(model: Any, prompts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """
    Tokens of the answers in what `generate` returned for `prompts` (B, T): behind the decoder's start token, or behind
    the prompt, which a decoder-only model repeats unless its own `generate` embeds it.
    """
    if is_encoder_decoder(inner_vlm(model).config):
        return tokens[:, 1:]
    length = prompts.shape[1]
    repeated = tokens.shape[1] >= length and torch.equal(tokens[:, :length], prompts)
    return tokens[:, length:] if repeated else tokens


def parse_strengths(given: Sequence[str]) -> dict[str, float]:
    """
    Strengths of a command line, `["alpha=0.5", ...]`, by name.

    Raises:
        ValueError: one of them is no NAME=NUMBER.
    """
    strengths: dict[str, float] = {}
    for word in given:
        name, _, value = word.partition("=")
        try:
            strengths[name.strip().replace("-", "_")] = float(value)
        except ValueError:
            raise ValueError(f"--strength {word!r} is no NAME=NUMBER, such as alpha=0.5.") from None
    return strengths
