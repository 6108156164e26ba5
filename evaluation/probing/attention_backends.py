"""Attention of a model's text stacks: how much each position receives, and pairs of positions that must not attend.

Statistics never hold a whole map. Each layer's attention runs in blocks of query rows through the model's own eager
function, so that soft caps, sinks and biases stay the model's, and each block is reduced to one number a key before the
next one runs: what is held is O(layers × tokens).
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils import logging

from ..model_errors import UnsupportedProbe
from .parts import ModelParts

logger = logging.get_logger(__name__)

_BLOCK = 64  # query rows whose weights exist at one time
_ROW_SUMS = "poise_attention_sums"
# A mask for every query and key can be given to these two.
TAKES_MASKS = ("eager", "sdpa")


class _Sums:
    """What the attention function adds to while statistics are taken: module → (queries (G, B, Q), sums (G, B, K))."""

    current: Mapping[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    seen: set[nn.Module] = set()


def _attention_in_blocks(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Eager attention of `query` (B, H, Q, E), a few rows at a time."""
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", eager_attention_forward)
    counted = _Sums.current.get(module)
    length, outputs = query.shape[2], []
    # As SDPA reads a mask that is left out: causal, unless it is one position or the layer reads both ways.
    causal = kwargs.pop("is_causal", None)
    causal = length > 1 and (getattr(module, "is_causal", True) if causal is None else causal)
    for start in range(0, length, _BLOCK):
        rows = slice(start, min(start + _BLOCK, length))

        def of_rows(tensor: Any, rows: slice = rows) -> Any:
            """A mask or a bias (.., Q, K) at some of its rows."""
            is_map = isinstance(tensor, torch.Tensor) and tensor.dim() == 4 and tensor.shape[2] == length
            return tensor[:, :, rows] if is_map else tensor

        mask = of_rows(attention_mask)
        if mask is None and causal:
            offset, keys = key.shape[2] - length, torch.arange(key.shape[2], device=key.device)
            mask = (keys <= (keys[rows.start + offset : rows.stop + offset, None]))[None, None]  # (1, 1, q, K)
        if mask is not None and mask.dtype == torch.bool:  # eager attention adds it
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        block = {name: of_rows(some) for name, some in kwargs.items()}
        output, weights = own(module, query[:, :, rows], key, value, mask, **block)
        outputs.append(output)  # (B, q, H, E)
        if counted is not None:
            queries, sums = counted
            if weights.shape[-1] != sums.shape[-1]:
                raise UnsupportedProbe(
                    f"model with {type(module).__name__} has no attention to its prompt alone: its image lies among "
                    f"the {weights.shape[-1]} positions that it attends to, the prompt has {sums.shape[-1]}; take "
                    "another model for it."
                )
            share = queries[..., rows].float()  # (G, B, q)
            sums += torch.einsum("bhqk,gbq->gbk", weights.float(), share) / weights.shape[1]  # (G, B, K)
            _Sums.seen.add(module)
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(_ROW_SUMS, _attention_in_blocks)
AttentionMaskInterface.register(_ROW_SUMS, sdpa_mask)  # none at all where a causal one will do


@contextmanager
def attention_implementation(stacks: Sequence[Any], allowed: Sequence[str]) -> Iterator[None]:
    """Within it every text stack's attention is one of `allowed`: as it is if that fits, else the first of them."""
    changed = [(s, name) for s in stacks if (name := s.config._attn_implementation) not in allowed]
    if changed and allowed[0] != _ROW_SUMS:
        logger.warning_once(
            f"attention implementation {changed[0][1]!r} cannot do what is measured here; {allowed[0]!r} takes its "
            "place meanwhile (said once)."
        )
    try:
        for stack, _ in changed:
            stack.set_attn_implementation(allowed[0])
        yield
    finally:
        for stack, name in changed:
            stack.set_attn_implementation(name)


@torch.no_grad()
def attention_received(
    parts: ModelParts, run: Callable[[], Any], queries: torch.Tensor, keys: int, across: bool = False
) -> torch.Tensor:
    """
    Attention (L, G, B, K) that each key receives from each group of queries: sum over these, mean over heads.

    A layer without attention weights (linear attention, convolution) is `nan` throughout.

    Args:
        run: runs the model once on the whole sequence.
        queries (G, B, Q): weight of each query in each group, 0 for those that do not count.
        keys: how many there are.
        across: in an encoder-decoder's cross-attention, not in the reader's self-attention.

    Raises:
        ValueError: the family's attention cannot be exchanged, or gives no weights.
    """
    modules = parts.cross_attentions if across else parts.attentions
    shape = (len(modules), *queries.shape[:2], keys)
    sums = torch.full(shape, torch.nan, device=queries.device)  # (L, G, B, K)
    for number, module in enumerate(modules):
        if module is not None:
            sums[number] = 0
    watched = {module: (queries, sums[i]) for i, module in enumerate(modules) if module is not None}
    if not watched:
        kind = "cross-attention of its own" if across else "self-attention"
        raise parts.cannot("attention weights", f"none of its text layers has {kind}")
    stacks = [parts.decoder] if across else [parts.reader]
    before, _Sums.current, _Sums.seen = _Sums.current, watched, set()
    try:
        with attention_implementation(stacks, (_ROW_SUMS,)):
            run()
        silent = [name for name, module in enumerate(modules) if module is not None and module not in _Sums.seen]
    finally:
        _Sums.current = before
    if silent:
        raise parts.cannot(
            "attention weights",
            f"layers {silent} do not go through transformers' AttentionInterface",
            "ask by knockout",
        )
    return sums


def check_layers(layers: Sequence[int], num_layers: int, argument: str = "layers") -> list[int]:
    """Sorted layers; raises a `ValueError` unless all lie in 0 to `num_layers` - 1 and there is at least one."""
    chosen = sorted(set(layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_layers:
        raise ValueError(
            f"{argument}={list(layers)} reaches outside of the {num_layers} layers: name some of 0 to {num_layers - 1}."
        )
    return chosen
