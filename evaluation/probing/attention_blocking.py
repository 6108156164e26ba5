"""Attention knockout: no weight from chosen positions to chosen positions, in chosen layers.

Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (arXiv 2304.14767),
attention knockout; for image tokens Neo et al. (arXiv 2410.07149), tracing of information flow. The mask of each
attention layer is edited on its way in, so the implementation computes exact zeros itself: additive masks receive minus
infinity, boolean ones `False`.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .attention_backends import TAKES_MASKS, attention_implementation, check_layers
from .parts import ModelParts


@contextmanager
def block_attention(
    parts: ModelParts,
    queries: torch.Tensor,
    keys: torch.Tensor,
    layers: Sequence[int] | None = None,
    answer_queries: bool = False,
) -> Iterator[None]:
    """
    Within it, `queries` give no attention to `keys`: in `forward`, in `generate`, with and without a cache or a mask.

    A position always keeps its attention to itself: a position that may look nowhere has no attention at all. Contexts
    can be nested to block several pairs. In an encoder-decoder the positions are the encoder's, and `answer_queries`
    are all of the decoder's, in its cross-attention.

    Args:
        parts: of a model in evaluation mode.
        queries, keys (B, T) bool: positions of the prompt, padding included, as the model gets them.
        layers (`Sequence[int]`, *optional*): where; every layer by default. A layer without attention weights (linear
            attention, convolution) can only be blocked by default, and then is not.
        answer_queries (`bool`, *optional*, defaults to `False`):
            Whether what follows the prompt (the answer, generated or given) is blocked like `queries`.

    Raises:
        ValueError: a layer that does not exist or has no weights to block, or masks of other shapes than (B, T).
    """
    if queries.shape != keys.shape or queries.dim() != 2 or queries.dtype != torch.bool or keys.dtype != torch.bool:
        raise ValueError(
            f"queries {tuple(queries.shape)} {queries.dtype} and keys {tuple(keys.shape)} {keys.dtype}: give two bool "
            "tensors of shape (batch, prompt length)."
        )
    targets: list[tuple[tuple[nn.Module | None, ...], Any]] = []
    if queries.any() or not parts.is_encoder_decoder:
        targets.append((parts.attentions, _SelfAttention(queries, keys, answer_queries)))
    if answer_queries and parts.is_encoder_decoder:
        targets.append((parts.cross_attentions, _CrossAttention(keys)))
    with ExitStack() as stack:
        stack.enter_context(attention_implementation(parts.stacks, TAKES_MASKS))
        for attentions, hook in targets:
            every = [number for number, module in enumerate(attentions) if module is not None]
            if not every:
                raise parts.cannot("attention knockout", "none of its text layers has attention weights")
            for number in check_layers(every if layers is None else layers, len(attentions)):
                module = attentions[number]
                if module is None:
                    raise parts.cannot("attention knockout", f"layer {number} has no attention weights", "leave it out")
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _by_name(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of an attention layer by their names."""
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


class _SelfAttention:
    """Edits the mask of a self-attention; a position is its place in the padded sequence, cached ones included."""

    def __init__(self, queries: torch.Tensor, keys: torch.Tensor, answer_queries: bool):
        self.queries, self.keys, self.answer_queries = queries, keys, answer_queries

    def __call__(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs = _by_name(module, args, kwargs)
        states, cache = kwargs["hidden_states"], kwargs.get("past_key_values")  # (B, Q, D)
        length = states.shape[1]
        past = 0 if cache is None else int(cache.get_seq_length(module.layer_idx))
        key_length, key_offset = (length, 0) if cache is None else cache.get_mask_sizes(length, module.layer_idx)
        query_places = past + torch.arange(length, device=states.device)  # (Q,)
        key_places = key_offset + torch.arange(key_length, device=states.device)  # (K,)
        from_query = _at(self.queries, query_places, states.shape[0], self.answer_queries)  # (B, Q)
        to_key = _at(self.keys, key_places, states.shape[0], False)  # (B, K)
        other = query_places[:, None] != key_places  # (Q, K)
        blocked = from_query[:, :, None] & to_key[:, None, :] & other  # (B, Q, K)
        unmasked = torch.ones_like(other)
        if getattr(module, "is_causal", False):
            unmasked = key_places <= query_places[:, None]  # (Q, K)
        kwargs, _ = _with_mask(module, states, kwargs, blocked, unmasked)
        return (), kwargs


class _CrossAttention:
    """Edits the mask of a decoder's attention to the encoder, for every position of the decoder."""

    def __init__(self, keys: torch.Tensor):
        self.keys = keys

    def __call__(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs = _by_name(module, args, kwargs)
        states = kwargs["hidden_states"]  # (B, Q, D)
        places = torch.arange(kwargs["key_value_states"].shape[1], device=states.device)  # (K,)
        to_key = _at(self.keys, places, states.shape[0], False)  # (B, K)
        blocked = to_key[:, None, :].expand(-1, states.shape[1], -1)  # (B, Q, K)
        kwargs, mask = _with_mask(module, states, kwargs, blocked, torch.ones_like(blocked[0]))
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min  # (B, 1, Q, K)
        if not bool(visible.any(-1).all()):
            raise ValueError("keys leaves the decoder nothing of a prompt to attend to: block fewer positions.")
        return (), kwargs


def _at(chosen: torch.Tensor, places: torch.Tensor, batch: int, beyond: bool) -> torch.Tensor:
    """`chosen` (B, T) at `places` (L,), (batch, L); `beyond` behind the prompt. Beams repeat rows."""
    if batch % chosen.shape[0]:
        raise ValueError(
            f"queries and keys are for {chosen.shape[0]} prompts, but the model runs {batch}: give one row for each."
        )
    chosen = chosen.to(places.device).repeat_interleave(batch // chosen.shape[0], dim=0)  # (batch, T)
    inside = places < chosen.shape[1]  # (L,)
    values = chosen[:, places.clamp(max=chosen.shape[1] - 1)]  # (batch, L)
    return torch.where(inside, values, torch.full_like(values, beyond))


def _with_mask(
    module: Any, states: torch.Tensor, kwargs: dict[str, Any], blocked: torch.Tensor, unmasked: torch.Tensor
) -> tuple[dict[str, Any], torch.Tensor]:
    """`kwargs` with a mask that also excludes `blocked` (B, Q, K), and that mask; `unmasked` (Q, K) stands for none."""
    name = "mask" if "mask" in kwargs else "attention_mask"  # T5 says `mask`
    mask = kwargs.get(name)
    if mask is None:
        mask = unmasked[None, None]  # (1, 1, Q, K)
        if module.config._attn_implementation not in ("sdpa",):  # adds its mask: `False` would block nothing there
            mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, float("-inf"))
    blocked = blocked[:, None]  # (B, 1, Q, K)
    if mask.dtype == torch.bool:
        mask = mask & ~blocked  # (B, 1, Q, K)
    else:
        mask = mask.masked_fill(blocked, float("-inf"))  # (B, 1, Q, K)
    return {**kwargs, name: mask}, mask
