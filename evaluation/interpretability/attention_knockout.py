"""Attention knockout by layer windows: through which layers does an answer draw on the object, the image, the prompt?

Neo et al., arXiv 2410.07149 (attention knockout), after Geva et al., arXiv 2304.14767, whose measure, the relative
change of the answer's probability, this is: block the attention of one group of positions to another in a few layers at
a time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..evaluator import Evaluator, Record, Row, groups_of, image_group
from ..intervals import estimate
from ..probing.answers import answer_log_probabilities, answer_texts, greedy_answers
from ..probing.attention_backends import check_layers
from ..probing.attention_blocking import block_attention
from ..probing.parts import ModelParts, model_parts
from ..probing.token_groups import GROUPS, token_groups
from .objects import FORMS, ObjectProbe, ObjectTokens, object_probe, read_probes
from .token_ablation import MAX_NEW_TOKENS

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


@dataclass(eq=False)
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

    depends_on = ("pairs", "window", "windows", "form", "buffer", "with_tags", "only_right")

    pairs: Sequence[tuple[str, str]] = PAIRS
    window: int | None = None
    windows: Sequence[tuple[int, int]] | None = None
    form: str = "vqa"
    buffer: int = 1
    with_tags: bool = True
    only_right: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for pair in self.pairs:
            for group in pair:
                if group not in GROUPS:
                    raise ValueError(f"pairs holds {group!r}: choose among {', '.join(GROUPS)}.")
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is not known: choose one of {', '.join(FORMS)}.")
        if self.window is not None and self.windows is not None:
            raise ValueError(f"window={self.window} and windows={list(self.windows)}: give one of them.")
        self.pairs = tuple((query, key) for query, key in self.pairs)

    @property
    def primary_metric(self) -> str:  # type: ignore[override]
        return f"{self.pairs[0][0]}_to_{self.pairs[0][1]}_{ALL_LAYERS}"

    def describe(self) -> str:
        return "attention knockout"

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
        modules = parts.cross_attentions if across else parts.attentions
        count = len(modules)
        every = [number for number, module in enumerate(modules) if module is not None]
        windows = self.windows
        if windows is None:
            windows = layer_windows(count, max(1, count // 4) if self.window is None else self.window)
        named = {}
        for first, last in windows:
            layers = check_layers(range(first, last + 1), count, f"window {first}-{last} =")
            if with_weights := [number for number in layers if number in every]:
                named[f"{first}-{last}"] = with_weights
        return {**named, ALL_LAYERS: every}

    def row(self, record: Record) -> Row | None:
        probe = object_probe(record)
        if probe is None or self.form not in probe.questions:
            return None
        row = {"id": probe.id, "object": probe.name, "box": list(probe.box), "question": probe.questions[self.form]}
        return {**row, **image_group(record)}

    def predict(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        parts = model_parts(model)
        tokens = ObjectTokens(processor.image_processor)
        pairs: list[tuple[ObjectProbe, Row]] = []
        for record, row in zip(records, rows, strict=True):
            probe = object_probe(record)
            assert probe is not None  # `row` has left the others out
            pairs.append((probe, row))
        prompts = read_probes(parts, processor, [probe for probe, _ in pairs], self.form, self.with_tags)
        answers = greedy_answers(prompts, max_new_tokens=MAX_NEW_TOKENS[self.form])
        chosen = []
        for place, (text, (probe, row)) in enumerate(zip(answer_texts(processor, answers), pairs, strict=True)):
            row["skipped"] = tokens.or_none(prompts, place, probe.image, probe.box) is None
            if row["skipped"]:
                continue
            row |= {"answer": text, "identified": probe.is_identified(self.form, text)}
            if answers[place] and (row["identified"] or not self.only_right):
                chosen.append(place)
        if not chosen:
            return
        pairs, answers = [pairs[place] for place in chosen], [answers[place] for place in chosen]
        prompts = read_probes(parts, processor, [probe for probe, _ in pairs], self.form, self.with_tags)
        objects = [tokens(prompts, i, probe.image, probe.box, self.buffer) for i, (probe, _) in enumerate(pairs)]
        groups = token_groups(prompts, torch.stack(objects))
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
                with block_attention(parts, groups[query], groups[key], layers, answer_queries=asks_last):
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
            metrics |= estimate(drops, groups=groups_of(own)).flat(key)
        return metrics
