"""Attention implementations that a measurement cannot work with are exchanged meanwhile, and that is said once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers.utils import logging

from poise.evaluation.model_parts import model_parts

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
