"""Where things are in a model: the stack that reads image tokens, its layers, its final norm, the head, the picture's
tokens. One description for Poise models and for transformers' LLaVA, so that what is measured is measured alike.

Attention implementations that a measurement cannot work with are exchanged meanwhile, and that is said once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ...modeling.inputs_poise import IMAGE_INPUTS
from ...modeling.prefix_tokens import PREFIX_TOKENS

# What model families call the same thing.
_LAYERS = ("layers", "h", "blocks", "block")
_FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")


@dataclass(frozen=True)
class ModelParts:
    """
    Attributes:
        model: the model itself, outside of PEFT.
        reader: the stack whose sequence holds the image tokens: a decoder-only language model, or T5's encoder.
        layers, attentions: the reader's layers and the self-attention of each.
        cross_attentions: of an encoder-decoder, the decoder's attention to what the encoder read, layer by layer.
        final_norm: what the reader's last hidden states pass through.
        projector: whose input is the vision tower's features, one row per image token.
        image_token_id: the placeholder.
        grid: (rows, columns) of patches of one picture.
        num_prefix_tokens: image tokens that stand before the patches (a class token that reaches the language model).
        num_prompt_tokens: soft-prompt tokens that follow a picture's image tokens.
    """

    model: PreTrainedModel
    reader: PreTrainedModel
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    cross_attentions: tuple[nn.Module, ...]
    final_norm: nn.Module
    projector: nn.Module
    image_token_id: int
    grid: tuple[int, int]
    num_prefix_tokens: int = 0
    num_prompt_tokens: int = 0

    @property
    def num_image_tokens(self) -> int:
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.cross_attentions)

    @property
    def attention_stacks(self) -> tuple[PreTrainedModel, ...]:
        """The stacks with a choice of attention implementation of their own."""
        return (self.reader, self.model.get_decoder()) if self.is_encoder_decoder else (self.reader,)

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Normed states (..., D) → logits (..., V), as the language model itself does it."""
        text_config = self.model.config.text_config
        if getattr(text_config, "scale_decoder_outputs", False):  # T5 with tied embeddings
            states = states * text_config.d_model**-0.5
        return self.model.get_output_embeddings()(states)

    def merged_embeddings(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """What the reader reads: embeddings (B, T, D) with image and soft-prompt tokens in their places."""
        pictures = {name: inputs[name] for name in IMAGE_INPUTS if inputs.get(name) is not None}
        if self.model.config.model_type == "poise":
            arguments, _ = self.model.model.read_streams(inputs["input_ids"], **pictures)
            return arguments["inputs_embeds"]
        embeddings = self.model.get_input_embeddings()(inputs["input_ids"])  # (B, T, D)
        features = self.model.get_image_features(**pictures, return_dict=True).pooler_output  # N × (P, D)
        placeholders = inputs["input_ids"] == self.image_token_id  # (B, T)
        tokens = torch.cat(list(features)).to(embeddings.device, embeddings.dtype)  # (N*P, D)
        return embeddings.masked_scatter(placeholders[..., None], tokens)


def model_parts(model: nn.Module) -> ModelParts:
    """
    The parts of a Poise model or a `LlavaForConditionalGeneration`, inside PEFT or not.

    Raises:
        ValueError: it is neither, or its language model or vision tower is of a family that is not known here.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind = getattr(getattr(inner, "config", None), "model_type", None)
    if kind == "poise" and hasattr(inner, "model"):
        return _poise_parts(inner)
    if kind == "llava" and hasattr(inner, "lm_head"):
        return _llava_parts(inner)
    raise ValueError(
        f"model={type(inner).__name__} is neither a PoiseForConditionalGeneration nor a LlavaForConditionalGeneration: "
        "give one of these, whose image tokens stand in the language model's sequence."
    )


def _poise_parts(model: Any) -> ModelParts:
    config, language_model = model.config, model.model.language_model
    shape = {
        "projector": model.model.projector,
        "image_token_id": config.image_token_id,
        "grid": config.patch_grid,
        "num_prefix_tokens": config.num_prefix_tokens if config.vision_feature_select == "full" else 0,
        "num_prompt_tokens": config.num_prompt_tokens,
    }
    if not config.is_encoder_decoder:
        return ModelParts(model=model, **_decoder_only(language_model.get_decoder()), **shape)
    reader, decoder = language_model.get_encoder(), language_model.get_decoder()
    layers = _named(reader, ("block",))
    return ModelParts(
        model=model,
        reader=reader,
        layers=tuple(layers),
        attentions=tuple(layer.layer[0].SelfAttention for layer in layers),
        cross_attentions=tuple(layer.layer[1].EncDecAttention for layer in _named(decoder, ("block",))),
        final_norm=_named(reader, _FINAL_NORMS),
        **shape,
    )


def _llava_parts(model: Any) -> ModelParts:
    config = model.config
    tower = config.vision_config
    if tower.model_type not in PREFIX_TOKENS:
        raise ValueError(
            f"vision_config.model_type={tower.model_type!r}: how its tokens lie on the picture is not known; take "
            f"{', '.join(PREFIX_TOKENS)}."
        )
    prefix = PREFIX_TOKENS[tower.model_type] + getattr(tower, "num_register_tokens", 0)
    if config.vision_feature_select_strategy == "default":
        prefix -= 1  # drops the first token, whatever it is
    if prefix < 0:
        raise ValueError(
            "vision_feature_select_strategy='default' drops a patch of a tower without class token, so its tokens are "
            "no grid: set it to 'full'."
        )
    side = tower.image_size // tower.patch_size
    return ModelParts(
        model=model,
        **_decoder_only(model.model.language_model),
        projector=model.model.multi_modal_projector,
        image_token_id=config.image_token_id,
        grid=(side, side),
        num_prefix_tokens=prefix,
    )


def _decoder_only(reader: Any) -> dict[str, Any]:
    layers = tuple(_named(reader, _LAYERS))
    return {
        "reader": reader,
        "layers": layers,
        "attentions": tuple(_named(layer, _ATTENTIONS) for layer in layers),
        "cross_attentions": (),
        "final_norm": _named(reader, _FINAL_NORMS),
    }


def _named(module: nn.Module, names: tuple[str, ...]) -> Any:
    """The child that goes by one of `names`."""
    for name in names:
        if isinstance(getattr(module, name, None), nn.Module):
            return getattr(module, name)
    raise ValueError(
        f"The language model's {type(module).__name__} has none of {', '.join(names)}: its family is not known to "
        "model_parts; add what it calls them."
    )


logger = logging.get_logger(__name__)

# `eager` is the only implementation that returns attention weights. A mask per query and key can be given to these two.
RETURNS_WEIGHTS = ("eager",)
TAKES_MASKS = ("eager", "sdpa")


@contextmanager
def attention_backend(model: nn.Module, allowed: Sequence[str] = RETURNS_WEIGHTS) -> Iterator[None]:
    """
    Within it the language model's attention is one of `allowed`: as it is if it already fits, else the first of them.

    The vision tower and the tag encoder keep theirs.

    Args:
        model: a Poise model or a `LlavaForConditionalGeneration`.
        allowed (`Sequence[str]`, *optional*, defaults to `("eager",)`): implementations that will do.
    """
    stacks = model_parts(model).attention_stacks
    before = [stack.config._attn_implementation for stack in stacks]
    changed = [name for name in before if name not in allowed]
    if changed:
        logger.warning_once(
            f"attention implementation {changed[0]!r} cannot do what is measured here; {allowed[0]!r} takes its place "
            "meanwhile (said once)."
        )
    try:
        for stack, name in zip(stacks, before, strict=True):
            if name not in allowed:
                stack.set_attn_implementation(allowed[0])
        yield
    finally:
        for stack, name in zip(stacks, before, strict=True):
            if name not in allowed:
                stack.set_attn_implementation(name)
