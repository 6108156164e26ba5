"""Pooled hidden states of an encoder, layer by layer: what `poise rank-encoders` and `poise curate` compare."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from ...modeling.backbones import load_encoder, vision_config_of
from ...modeling.dual_encoder_head import weighted_mean
from ...modeling.modeling_dual_encoder import encoder_of, text_config_of
from ...modeling.prefix_tokens import count_prefix_tokens
from ..backbone_loading import resolve_backbone

MAX_LENGTH = 64  # tokens; longer texts are cut
RANDOM = "random:"  # before a name: the same architecture without its training, a baseline to compare with


def _load(argument: str, name: str, config: Any) -> torch.nn.Module:
    if name.startswith(RANDOM):
        torch.manual_seed(0)
        return AutoModel.from_config(config)
    return load_encoder(argument, resolve_backbone(name), torch.float32, config=config)


@contextmanager
def _named(argument: str, name: str) -> Iterator[None]:
    """transformers tells what it could not find, but not who asked for it."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"{argument}={name!r} could not be loaded: name a folder, a Hub id within reach or tiny:NAME ({reason})"
        ) from error


class VisionStates:
    """
    A vision tower's states, averaged over the patches.

    Args:
        name (`str`): Hub id, folder, `tiny:vision`; with `random:` before it, untrained.
        device (`str`, *optional*, defaults to `"cpu"`).
    """

    def __init__(self, name: str, device: str | torch.device = "cpu"):
        source = resolve_backbone(name.removeprefix(RANDOM))
        with _named("vision", name):
            config = vision_config_of(source)
            self.processor = AutoImageProcessor.from_pretrained(source)
            self.model = _load("vision", name, config).to(device).eval()
        self.name, self.prefix, self.device = name, count_prefix_tokens(config), device

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """Images → a list over layers (embeddings first) of (N, Dv)."""
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"].to(self.device)
        outputs = self.model(pixel_values=pixels, output_hidden_states=True, return_dict=True)
        return [states[:, self.prefix :].mean(1).cpu() for states in outputs.hidden_states]


class TextStates:
    """
    A text encoder's states, averaged over the tokens. Decoder-only and encoder-decoder models may be asked, too.

    Args:
        name (`str`): Hub id, folder, `tiny:tag_encoder`; with `random:` before it, untrained.
        device (`str`, *optional*, defaults to `"cpu"`).
    """

    def __init__(self, name: str, device: str | torch.device = "cpu"):
        source = resolve_backbone(name.removeprefix(RANDOM))
        self.name, self.device = name, device
        with _named("text", name):
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            self.model = encoder_of(_load("text", name, text_config_of(source))).to(device).eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Texts → a list over layers (embeddings first) of (B, Dt)."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, padding_side="right",
            return_attention_mask=True, return_tensors="pt",  # SigLIP's tokenizers give none unasked
        ).to(self.device)  # fmt: skip
        outputs = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True,
            return_dict=True,
        )  # fmt: skip
        return [weighted_mean(states, batch["attention_mask"]).cpu() for states in outputs.hidden_states]
