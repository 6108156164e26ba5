"""A batch of prompts as a model reads them: its inputs, and which place of the sequence belongs to what."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ...modeling.inputs_poise import IMAGE_INPUTS
from ..chat_collator import ANSWER_TOKEN_TYPE
from ..model_errors import model_errors
from .image_features import Change, ImageFeatures, changed_reading, image_features
from .parts import ModelParts


@dataclass(frozen=True)
class PromptBatch:
    """
    B prompts of length T, with whatever images they hold.

    Attributes:
        parts: of the model.
        inputs: of its `forward`, `input_ids` (B, T) among them; padding on the left for a decoder-only model.
        soft_prompt (B, T) bool (*optional*): placeholders that a soft prompt fills.
        tag_words, question_words (B, T) bool (*optional*).
    """

    parts: ModelParts
    inputs: Mapping[str, Any]
    soft_prompt: torch.Tensor | None = None
    tag_words: torch.Tensor | None = None
    question_words: torch.Tensor | None = None
    _features: list[ImageFeatures] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def input_ids(self) -> torch.Tensor:
        return self.inputs["input_ids"]

    @property
    def attention_mask(self) -> torch.Tensor:
        """(B, T)."""
        mask = self.inputs.get("attention_mask")
        return torch.ones_like(self.input_ids) if mask is None else mask

    @cached_property
    def placeholders(self) -> torch.Tensor:
        """Places that `get_image_features` fills, (B, T) bool."""
        if not self.parts.has_image_tokens:
            return torch.zeros_like(self.input_ids, dtype=torch.bool)
        return self.input_ids == self.parts.image_token_id

    @cached_property
    def image(self) -> torch.Tensor:
        """Places of image tokens, (B, T) bool: the placeholders but for those of a soft prompt."""
        return self.placeholders if self.soft_prompt is None else self.placeholders & ~self.soft_prompt

    @property
    def features(self) -> ImageFeatures | None:
        """
        What fills the placeholders, worked out once; `None` where there is none to fill, or no such seam.

        Raises:
            ValueError: there are more or fewer placeholders than features.
        """
        if not bool(self.placeholders.any()):
            return None
        if not self._features:
            features = image_features(self.parts, self.inputs)
            count = int(self.placeholders.sum())
            if count != len(features.rows):
                raise ValueError(
                    f"processor writes {count} placeholders, the model fills {len(features.rows)}: use the processor "
                    "that was saved with the model."
                )
            self._features.append(features)
        return self._features[0]

    def image_rows(self, places: torch.Tensor) -> torch.Tensor:
        """Vectors (n, D') at `places` (B, T) bool, which are placeholders."""
        self.parts.check_image_tokens("image tokens")
        assert self.features is not None
        return self.features.rows[places[self.placeholders]]

    def vision_norms(self) -> torch.Tensor:
        """
        Length of the vision tower's feature at each image token, (B, T); 0 elsewhere.

        Where the tower has another number of tokens (merged patches, queries), of what the language model is given.
        """
        assert self.features is not None
        count = int(self.image.sum())
        states = getattr(self.features.output, "last_hidden_state", None)
        layer = getattr(self.parts.config, "vision_feature_layer", None)
        every = getattr(self.features.output, "hidden_states", None)
        if isinstance(layer, int) and every is not None and every[layer] is not None:
            states = every[layer]  # what the projector reads
        rows = self.features.rows[self.image[self.placeholders]]  # (N, D')
        if isinstance(states, torch.Tensor) and states.dim() == 3:
            per_image, images = count // len(states), len(states)
            extra = states.shape[1] - per_image  # a class token before the patches, which the model leaves out
            if per_image * images == count and extra in (0, 1):
                rows = states[:, extra:].reshape(count, -1)
        norms = torch.zeros(self.input_ids.shape, device=rows.device)  # (B, T)
        return norms.masked_scatter(self.image, rows.float().norm(dim=-1))

    @contextmanager
    def reading(self, changes: Sequence[Change] = ()) -> Iterator[None]:
        """Within it the model reads these prompts with `changes`, its vision tower at rest."""
        if any(bool((change.places & self.placeholders).any()) for change in changes):
            self.parts.check_image_tokens("image tokens")
        features = self.features
        with (
            changed_reading(self.parts, self.input_ids, self.placeholders, features, changes),
            model_errors(self.parts.model),
        ):
            yield

    def logits(self, changes: Sequence[Change] = (), **options: Any) -> torch.Tensor:
        """The model's own, (B, T, V), or (B, A, V) of an encoder-decoder's decoder."""
        with self.reading(changes):
            return self.parts.model(**{**self.forward_inputs(), **options}, use_cache=False).logits

    def forward_inputs(self, answers: torch.Tensor | None = None, real: torch.Tensor | None = None) -> dict[str, Any]:
        """
        Inputs of `forward`, with `answers` (B, A) behind the prompts of a decoder-only model; `real` (B, A) leaves out
        padding behind them.
        """
        inputs = dict(self.inputs)
        if answers is not None:
            real = torch.ones_like(answers) if real is None else real
            batch, length = self.input_ids.shape
            inputs["attention_mask"] = self.attention_mask
            for name, value in inputs.items():
                if name in IMAGE_INPUTS or not isinstance(value, torch.Tensor) or value.shape[:2] != (batch, length):
                    continue  # rows of images may happen to be as many and as long
                if name == "input_ids":
                    added = answers
                elif name == "attention_mask":
                    added = real.to(value)
                elif value.dim() == 2:
                    kind = ANSWER_TOKEN_TYPE.get(self.parts.family, 0) if name == "token_type_ids" else 0
                    added = torch.full_like(answers, kind, dtype=value.dtype)
                else:  # which images a place attends to: as the last place of the prompt does
                    added = value[:, -1:].expand(-1, answers.shape[1], *value.shape[2:])
                inputs[name] = torch.cat([value, added], dim=1)
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask.all()) and "position_ids" not in inputs and self._takes_positions:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)  # as `generate` counts them
        return inputs

    @cached_property
    def _takes_positions(self) -> bool:
        """Whether positions are one number each; families with three work them out themselves."""
        takes = "position_ids" in inspect.signature(self.parts.vlm.forward).parameters
        base: Any = self.parts.vlm.base_model
        own = hasattr(base, "get_rope_index") or self.parts.is_encoder_decoder
        return (takes or self.parts.family == "poise") and not own
