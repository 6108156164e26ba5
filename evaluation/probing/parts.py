"""Where things are in a model: the stack that reads image tokens, its layers, their attention, and where images enter.

Written against transformers' interface; `families.py` holds what it does not tell.
"""

import inspect
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from ..model_errors import UnsupportedProbe, inner_vlm
from .families import GENERATES_BY_FORWARD, NO_IMAGE_TOKENS, NO_PROMPT

_LAYERS = ("layers", "h", "blocks", "block", "decoder_layers", "layer")
_FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "layer_norm")
_NO_ATTENTION_WEIGHTS = re.compile(r"Linear|Lightning|DeltaNet|Conv|Mamba")
_CROSS = re.compile(r"cross|encoder_attn|EncDecAttention", re.IGNORECASE)
_VISION = re.compile(r"vision|visual|vq|image|audio", re.IGNORECASE)


@dataclass(frozen=True)
class ModelParts:
    """
    Attributes:
        model: the model itself, outside of PEFT.
        vlm: the model of transformers: `model`, or what a [`RoutedVlm`] routes the images of.
        reader: the stack whose sequence holds the image tokens: a decoder-only language model, or a text encoder.
        layers: of the reader. attentions: the self-attention of each, `None` for a layer without attention weights.
        decoder: of an encoder-decoder, else the reader.
        cross_attentions: of an encoder-decoder, the decoder's attention to what the encoder read, layer by layer.
        final_norm: what an encoder's last states pass through; of a decoder-only model the lens needs none.
        image_owner: the module whose `image_method` fills the placeholders; `None` where there is no such seam.
        image_method: `get_image_features`, or what gives its routed output.
        image_token_id: the placeholder, `None` where there is none.
    """

    model: PreTrainedModel
    vlm: PreTrainedModel
    reader: nn.Module
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module | None, ...]
    decoder: nn.Module
    cross_attentions: tuple[nn.Module, ...]
    final_norm: nn.Module
    image_owner: nn.Module | None
    image_method: str
    image_token_id: int | None

    @property
    def is_encoder_decoder(self) -> bool:
        return self.decoder is not self.reader

    @property
    def stacks(self) -> tuple[nn.Module, ...]:
        return (self.reader, self.decoder) if self.is_encoder_decoder else (self.reader,)

    @property
    def family(self) -> str:
        return self.config.model_type

    @property
    def config(self) -> Any:
        """Of the vision-language model."""
        return self.vlm.config

    @property
    def is_routed(self) -> bool:
        """Whether a router stands on it that reads tags by itself."""
        return self.vlm is not self.model

    @property
    def reads_tags(self) -> bool:
        """Whether tags are a stream of their own; for any other model they are words."""
        return self.is_routed or self.family == "poise"

    @property
    def generates(self) -> bool:
        """Whether its `generate` goes through `forward`, so that what is changed there changes the answer."""
        owner = next((some for some in type(self.vlm).__mro__ if "generate" in vars(some)), None)
        return owner is GenerationMixin or self.family in GENERATES_BY_FORWARD

    def cannot(self, probe: str, why: str, remedy: str = "take another model for it") -> UnsupportedProbe:
        """The one line of a family that cannot do something."""
        return UnsupportedProbe(f"model={type(self.vlm).__name__} ({self.family}) has no {probe}: {why}; {remedy}.")

    @property
    def has_image_tokens(self) -> bool:
        """Whether what the model sees stands in places of its sequence, where it can be replaced."""
        return self.image_owner is not None and self.image_token_id is not None

    def check_image_tokens(self, probe: str) -> None:
        """
        Raises:
            UnsupportedProbe: what the model sees stands in no place of its sequence, so nothing can be replaced there.
        """
        if not self.has_image_tokens:
            why = NO_IMAGE_TOKENS.get(self.family, "it has no `get_image_features` that fills placeholders")
            raise self.cannot(probe, why, "knockout of words, degraded images and answers still work")


def model_parts(model: nn.Module) -> ModelParts:
    """
    Args:
        model: any image-text-to-text model of transformers, a Poise model included, inside PEFT or not.

    Raises:
        ValueError: no text layers are found in it, or it reads no image or no question.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, PreTrainedModel):
        raise ValueError(f"model={type(inner).__name__} is no transformers model: load one with from_pretrained.")
    vlm = inner_vlm(inner)
    why = NO_PROMPT.get(vlm.config.model_type)
    if why is None and not _reads_images(vlm):  # as text models that AutoModelForImageTextToText loads, too
        why = "its forward takes no image"
    if why is not None:
        raise UnsupportedProbe(
            f"model={type(inner).__name__} ({vlm.config.model_type}) cannot be looked into: {why}; take another model."
        )
    decoder = _innermost(vlm, "get_decoder")
    reader = decoder
    if is_encoder_decoder(vlm):
        encoder = _innermost(vlm, "get_encoder")
        reader = decoder if encoder is vlm else encoder
    layers = _layers_of(reader)
    if not layers:
        raise ValueError(
            f"model={type(inner).__name__} ({vlm.config.model_type}) has no text layers where `get_decoder` points: "
            "it cannot be looked into; take another family."
        )
    cross: list[nn.Module] = []
    if reader is not decoder:
        found = [_attention(layer, cross=True) for layer in _layers_of(decoder)]
        cross = [module for module in found if module is not None]
    owner = _image_owner(vlm)
    routed = vlm is not inner and owner is not None
    return ModelParts(
        model=inner,
        vlm=vlm,
        reader=reader,
        layers=tuple(layers),
        attentions=tuple(_attention(layer) for layer in layers),
        decoder=decoder,
        cross_attentions=tuple(cross),
        final_norm=next(
            (module for name in _FINAL_NORMS if isinstance(module := getattr(reader, name, None), nn.Module)),
            nn.Identity(),
        ),
        image_owner=inner if routed else owner,
        image_method="routed_image_features" if routed else "get_image_features",
        image_token_id=image_token_id(vlm.config),
    )


def _reads_images(model: Any) -> bool:
    takes = inspect.signature(model.forward).parameters
    return hasattr(model.base_model, "get_image_features") or any(
        re.search("pixel|image|patch", name) for name in takes
    )


def is_encoder_decoder(model: Any) -> bool:
    text = model.config.get_text_config(decoder=False)
    return bool(getattr(model.config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False))


def image_token_id(config: Any) -> int | None:
    """The id that stands for an image token in `input_ids`."""
    if config.model_type in NO_IMAGE_TOKENS:
        return None
    for name in ("image_token_id", "image_token_index", "image_patch_id", "image_patch_token_id"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    return None


def placeholder_ids(config: Any) -> list[int]:
    """Ids of the vocabulary that stand for images, videos and sounds: no answer holds them."""
    names = [f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index")]
    found = {value for name in names if isinstance(value := getattr(config, name, None), int)}
    return sorted(value for value in found if value < config.get_text_config(decoder=True).vocab_size)


def _image_owner(model: Any) -> nn.Module | None:
    if model.config.model_type in NO_IMAGE_TOKENS:
        return None
    # An encoder that reads images itself (T5Gemma 2) is asked by its own forward, past the model's method.
    encoder = [_innermost(model, "get_encoder")] if is_encoder_decoder(model) else []
    for owner in (*encoder, model.base_model, model):
        if hasattr(owner, "get_image_features"):
            return owner
    return None


def _innermost(model: Any, method: str) -> nn.Module:
    """Follows `get_decoder` or `get_encoder` as far as it leads."""
    stack = model
    while hasattr(stack, method) and (inner := getattr(stack, method)()) is not stack:
        stack = inner
    return stack


def _layers_of(stack: nn.Module) -> list[nn.Module]:
    """The nearest list of layers with a usual name that is no vision tower's."""
    waiting = deque([stack])
    while waiting:
        module = waiting.popleft()
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and name in _LAYERS and len(child):
                return list(child)
        waiting.extend(child for name, child in module.named_children() if not _VISION.search(name))
    return []


def _attention(layer: nn.Module, cross: bool = False) -> nn.Module | None:
    """The innermost attention of a layer, self or cross, that makes one weight for each pair of positions."""
    found = [
        (name, module)
        for name, module in layer.named_modules()
        if re.search(r"Attention|Attn", type(module).__name__)
        and not _NO_ATTENTION_WEIGHTS.search(type(module).__name__)
        and bool(_CROSS.search(f"{name} {type(module).__name__}")) == cross
        # Inkling 2 calls what joins its layers' outputs an attention, too.
        and {"mask", "attention_mask"} & set(inspect.signature(module.forward).parameters)
    ]
    names = [name for name, _ in found]
    for name, module in found:
        if name and not any(other.startswith(f"{name}.") for other in names) and any(True for _ in module.parameters()):
            return module
    return None


def vocabulary_size(parts: ModelParts) -> int:
    """
    Raises:
        ValueError: the model has no head.
    """
    head = parts.model.get_output_embeddings()
    if head is None:
        raise parts.cannot("logit lens", "it has no output embeddings")
    weight: torch.Tensor = head.weight
    return weight.shape[0]
