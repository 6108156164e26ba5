"""Attention knockout by layer windows: through which layers does an answer draw on the object, the picture, the prompt?

Neo et al., arXiv 2410.07149 (attention knockout), after Geva et al., arXiv 2304.14767, whose measure, the relative
change of the answer's probability, this is: block the attention of one group of positions to another in a few layers at
a time.

Attention knockout: no weight from chosen positions to chosen positions, in chosen layers.

Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (arXiv 2304.14767),
attention knockout; for image tokens Neo et al. (arXiv 2410.07149), tracing of information flow. The mask of each
attention layer is edited on its way in, so the implementation computes exact zeros itself: additive masks receive minus
infinity, boolean ones `False`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..evaluator import Evaluator, Record, Row, groups_of, image_group
from ..intervals import mean_with_interval
from ..probing.answers import answer_log_probabilities, answer_texts, greedy_answers
from ..probing.model_parts import TAKES_MASKS, ModelParts, attention_backend, model_parts
from ..probing.token_groups import GROUPS, token_groups, tokens_of_patches
from ..probing.visual_prompts import read_prompts
from .objects import FORMS, ObjectPatches, object_probe, patches_or_none
from .token_ablation import MAX_NEW_TOKENS


def check_layers(layers: Sequence[int], num_layers: int, argument: str = "layers") -> list[int]:
    """Sorted layers; raises a `ValueError` unless all lie in 0 to `num_layers` - 1 and there is at least one."""
    chosen = sorted(set(layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_layers:
        raise ValueError(
            f"{argument}={list(layers)} reaches outside of the {num_layers} layers: name some of 0 to {num_layers - 1}."
        )
    return chosen


@contextmanager
def block_attention(
    model: nn.Module,
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
        model: a Poise model or a `LlavaForConditionalGeneration`; in evaluation mode.
        queries, keys (B, T) bool: positions of the prompt, padding included, as the model gets them.
        layers (`Sequence[int]`, *optional*): where; every layer by default.
        answer_queries (`bool`, *optional*, defaults to `False`):
            Whether what follows the prompt (the answer, generated or given) is blocked like `queries`.

    Raises:
        ValueError: a layer that does not exist, or masks of other shapes than (B, T).
    """
    parts = model_parts(model)
    if queries.shape != keys.shape or queries.dim() != 2 or queries.dtype != torch.bool or keys.dtype != torch.bool:
        raise ValueError(
            f"queries {tuple(queries.shape)} {queries.dtype} and keys {tuple(keys.shape)} {keys.dtype}: give two bool "
            "tensors of shape (batch, prompt length)."
        )
    targets: list[tuple[tuple[nn.Module, ...], Any]] = []
    if queries.any() or not parts.is_encoder_decoder:
        targets.append((parts.attentions, _SelfAttention(queries, keys, answer_queries)))
    if answer_queries and parts.is_encoder_decoder:
        targets.append((parts.cross_attentions, _CrossAttention(keys)))
    with ExitStack() as stack:
        stack.enter_context(attention_backend(model, TAKES_MASKS))
        for attentions, hook in targets:
            for layer in check_layers(range(len(attentions)) if layers is None else layers, len(attentions)):
                handle = attentions[layer].register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield


class _SelfAttention:
    """Edits the mask of a self-attention; a position is its place in the padded sequence, cached ones included."""

    def __init__(self, queries: torch.Tensor, keys: torch.Tensor, answer_queries: bool):
        self.queries, self.keys, self.answer_queries = queries, keys, answer_queries

    def __call__(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # (B, Q, D)
        length, cache = states.shape[1], kwargs.get("past_key_values")
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
        return args, kwargs


class _CrossAttention:
    """Edits the mask of a decoder's attention to the encoder, for every position of the decoder."""

    def __init__(self, keys: torch.Tensor):
        self.keys = keys

    def __call__(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # (B, Q, D)
        places = torch.arange(kwargs["key_value_states"].shape[1], device=states.device)  # (K,)
        to_key = _at(self.keys, places, states.shape[0], False)  # (B, K)
        blocked = to_key[:, None, :].expand(-1, states.shape[1], -1)  # (B, Q, K)
        kwargs, mask = _with_mask(module, states, kwargs, blocked, torch.ones_like(blocked[0]))
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min  # (B, 1, Q, K)
        if not bool(visible.any(-1).all()):
            raise ValueError("keys leaves the decoder nothing of a prompt to attend to: block fewer positions.")
        return args, kwargs


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
        if module.config._attn_implementation == "eager":  # adds its mask: `False` would block nothing there
            mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, float("-inf"))
    blocked = blocked[:, None]  # (B, 1, Q, K)
    if mask.dtype == torch.bool:
        mask = mask & ~blocked  # (B, 1, Q, K)
    else:
        mask = mask.masked_fill(blocked, float("-inf"))  # (B, 1, Q, K)
    return {**kwargs, name: mask}, mask


# Who no longer looks at whom.
PAIRS = (
    ("last", "image_object"),
    ("last", "image_rest"),
    ("last", "soft_prompt"),
    ("last", "tag_words"),
    ("last", "question"),
    ("question", "image_object"),
    ("question", "image_rest"),
    ("image_rest", "image_object"),
)
ALL_LAYERS = "all"


def layer_windows(num_layers: int, width: int) -> list[tuple[int, int]]:
    """
    (first, last) of every window of `width` neighbouring layers.

    Raises:
        ValueError: a width below 1 or above the number of layers.
    """
    if not 1 <= width <= num_layers:
        raise ValueError(f"window={width} does not fit: give 1 to {num_layers}, the model's number of layers.")
    return [(first, first + width - 1) for first in range(num_layers - width + 1)]


class AttentionKnockout(Evaluator):
    """How much less probable an answer becomes without one group's attention to another, window by window.

    The answer is the model's own, where it is right. Keys of the result: `QUERY_to_KEY_FIRST-LAST`, the mean over
    samples of 1 - (probability without) / (probability with), with `_low` and `_high`; `QUERY_to_KEY_all` is every
    layer at once; `clean` is the share of right answers, `clean_probability` their mean probability, `samples` how many
    were asked about. Negative drops are gains. Groups are those of [`token_groups`]; in an encoder-decoder `last` is
    the decoder, whose layers are counted, otherwise the layers are the encoder's.

    Args:
        pairs (*optional*): (query group, key group).
        window (`int`, *optional*): width; a quarter of the layers by default, at least one.
        windows (*optional*): (first, last) layers in place of `window`.
        form (`str`, *optional*, defaults to `"vqa"`): which question of [`ObjectProbe`] is asked.
        buffer (`int`, *optional*, defaults to 1): patches around the object that count as the object.
        with_tags (`bool`, *optional*, defaults to `True`): whether the model is also told the tags.
        only_right (`bool`, *optional*, defaults to `True`): leave out what the model answers wrongly anyway.
        **options: of [`Evaluator`].

    Raises:
        ValueError: an unknown group or form, or, when called, windows that reach outside of the model's layers.
    """

    greater_is_better = True

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]] = PAIRS,
        window: int | None = None,
        windows: Sequence[tuple[int, int]] | None = None,
        form: str = "vqa",
        buffer: int = 1,
        with_tags: bool = True,
        only_right: bool = True,
        **options: Any,
    ):
        super().__init__(**options)
        for pair in pairs:
            for group in pair:
                if group not in GROUPS:
                    raise ValueError(f"pairs holds {group!r}: choose among {', '.join(GROUPS)}.")
        if form not in FORMS:
            raise ValueError(f"form={form!r} is not known: choose one of {', '.join(FORMS)}.")
        if window is not None and windows is not None:
            raise ValueError(f"window={window} and windows={list(windows)}: give one of them.")
        self.pairs = tuple((query, key) for query, key in pairs)
        self.window, self.windows = window, windows
        self.form, self.buffer, self.with_tags, self.only_right = form, buffer, with_tags, only_right

    @property
    def primary_metric(self) -> str:  # type: ignore[override]
        return f"{self.pairs[0][0]}_to_{self.pairs[0][1]}_{ALL_LAYERS}"

    def describe(self) -> str:
        return "attention knockout"

    def settings(self) -> dict[str, Any]:
        names = ("pairs", "window", "windows", "form", "buffer", "with_tags", "only_right")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    def __call__(self, model: Any, processor: Any, records: Iterable[Record]) -> dict[str, float]:
        self.check_windows(model_parts(model))
        return super().__call__(model, processor, records)

    def check_windows(self, parts: ModelParts) -> None:
        """Raises a `ValueError` for a window that does not fit the model, before any work."""
        for query, _ in self.pairs:
            self.layers_of(parts, query)

    def layers_of(self, parts: ModelParts, query: str) -> dict[str, list[int]]:
        """Window name → layers, for blocks of this query group."""
        across = parts.is_encoder_decoder and query == "last"
        count = len(parts.cross_attentions if across else parts.attentions)
        windows = self.windows
        if windows is None:
            windows = layer_windows(count, max(1, count // 4) if self.window is None else self.window)
        named = {
            f"{first}-{last}": check_layers(range(first, last + 1), count, f"window {first}-{last} =")
            for first, last in windows
        }
        return {**named, ALL_LAYERS: list(range(count))}

    def row(self, record: Record) -> Row | None:
        probe = object_probe(record)
        if probe is None or self.form not in probe.questions:
            return None
        row = {"id": probe.id, "object": probe.name, "box": list(probe.box), "question": probe.questions[self.form]}
        return {**row, **image_group(record)}

    def predict(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        parts = model_parts(model)
        patches = ObjectPatches(processor.image_processor, parts.grid)
        pairs = []
        for record, row in zip(records, rows, strict=True):
            probe = object_probe(record)
            assert probe is not None  # `row` has left the others out
            row["skipped"] = patches_or_none(patches, probe.image, probe.box) is None
            if not row["skipped"]:
                pairs.append((probe, row))
        if not pairs:
            return
        prompts = read_prompts(
            parts,
            processor,
            [probe.image for probe, _ in pairs],
            [probe.questions[self.form] for probe, _ in pairs],
            [probe.tags if self.with_tags else [] for probe, _ in pairs],
        )
        answers = greedy_answers(prompts, max_new_tokens=MAX_NEW_TOKENS[self.form])
        chosen = []
        for place, (text, (probe, row)) in enumerate(zip(answer_texts(prompts, answers), pairs, strict=True)):
            row |= {"answer": text, "identified": probe.is_identified(self.form, text)}
            if answers[place] and (row["identified"] or not self.only_right):
                chosen.append(place)
        if not chosen:
            return
        prompts, pairs = prompts.rows(chosen), [pairs[place] for place in chosen]
        answers = [answers[place] for place in chosen]
        grids = [patches(probe.image, probe.box, self.buffer) for probe, _ in pairs]
        groups = token_groups(prompts, tokens_of_patches(prompts, grids))
        clean = answer_log_probabilities(prompts, answers)  # (B,)
        for (_, row), value in zip(pairs, clean.tolist(), strict=True):
            row |= {"log_probability": value, "without": {}}
        for query, key in self.pairs:
            asks_last = query == "last"
            # Without tags there are no tag words, and so on: such a row has nothing to block.
            present = groups[key].any(-1) & (groups[query].any(-1) | asks_last)  # (B,)
            if not bool(present.any()):
                continue
            for window, layers in self.layers_of(parts, query).items():
                with block_attention(model, groups[query], groups[key], layers, answer_queries=asks_last):
                    values = answer_log_probabilities(prompts, answers)  # (B,)
                for (_, row), value, has in zip(pairs, values.tolist(), present.tolist(), strict=True):
                    if has:
                        row["without"][f"{query}_to_{key}_{window}"] = value

    def score(self, rows: list[Row]) -> dict[str, float]:
        asked = [row for row in rows if not row["skipped"]]
        weighed = [row for row in asked if "log_probability" in row]
        metrics = {
            "skipped": float(len(rows) - len(asked)),
            "samples": float(len(asked)),
            "clean": float(np.mean([row["identified"] for row in asked])) if asked else 0.0,
            "clean_probability": float(np.mean([np.exp(row["log_probability"]) for row in weighed]))
            if weighed
            else 0.0,
        }
        for key in dict.fromkeys(key for row in weighed for key in row["without"]):
            own = [row for row in weighed if key in row["without"]]
            drops = [1.0 - float(np.exp(row["without"][key] - row["log_probability"])) for row in own]
            metrics |= mean_with_interval(key, drops, groups_of(own))
        return metrics
