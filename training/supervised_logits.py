"""Logits where an answer stands, and nowhere else: most places of a training row are picture, prompt or padding.

The head multiplies every position by the whole vocabulary, forwards and backwards, and the loss then looks at the few
positions whose next token is supervised. Those alone give the same loss and the same gradients.
"""

import inspect
from typing import Any

import torch

from poise.processing.collators import IGNORED
from poise.training.checkpoints import base_of


def supervised_only(inputs: dict[str, Any]) -> dict[str, Any]:
    """
    The inputs of a decoder-only model with `logits_to_keep` [B, T] bool, true where the next token is supervised, and
    `shift_labels` [n], those tokens; its `logits` then are [n, V]. A batch without any stays as it is.
    """
    following = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)  # (B, T)
    supervised = following != IGNORED  # (B, T)
    if not bool(supervised.any()):
        return inputs
    return {**inputs, "logits_to_keep": supervised, "shift_labels": following[supervised]}  # (B, T), (n,)


def takes_a_mask(model: torch.nn.Module) -> bool:
    """
    Whether the model's language model can leave out logits by a mask: it is decoder-only, and cuts by transformers' own
    function. Heads that were replaced, or that come with a repository, may know numbers only.
    """
    base = base_of(model)
    if base.config.is_encoder_decoder:
        return False
    forward = inspect.unwrap(base.model.language_model.forward)
    return "slice_logits_to_keep" in getattr(getattr(forward, "__code__", None), "co_names", ())
