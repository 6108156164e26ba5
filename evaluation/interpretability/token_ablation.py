"""Object-token ablation: does a model still see an object after the image tokens under it are replaced?

Neo et al., arXiv 2410.07149, ablation experiments: tokens are replaced by the mean image token of other images, where
the language model reads them. Of the objects that a model identifies with nothing replaced, the share that it then no
longer identifies is the drop; for LLaVA its authors report over 70 %.

Integrated gradients over image tokens: how much each of them adds to the log-probability of an answer.

Sundararajan et al., "Axiomatic Attribution for Deep Networks" (ICML 2017, section 3): the path runs from a baseline
token in every place to the tokens that are there. The attributions of all tokens add up to the difference that they
make together (completeness), but for the error of the sum that stands for the integral.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..evaluator import Evaluator, Record, Row, groups_of, image_group
from ..intervals import estimate
from ..probing.answers import answer_log_probabilities, answer_texts, greedy_answers
from ..probing.image_features import Change
from ..probing.parts import model_parts
from ..probing.prompt_batch import PromptBatch
from ..probing.prompt_reading import read_prompts, read_records
from ..probing.token_groups import RIVALS, highest_tokens, random_tokens
from ..sample_donors import SwappableRecords, as_map_style
from .objects import FORMS, ObjectProbe, ObjectTokens, mention, object_probe, read_probes


def integrated_gradients(
    prompts: PromptBatch,
    answers: Sequence[Sequence[int]],
    baseline: torch.Tensor | None = None,
    counted_from: Sequence[int] | None = None,
    steps: int = 16,
) -> torch.Tensor:
    """
    Attribution (B, T) of each image token, in nats; 0 elsewhere.

    Args:
        prompts: B prompts.
        answers: token ids of the answer to each.
        baseline (D',) (*optional*): the token that stands for "nothing here"; zeros by default.
        counted_from (*optional*): of each answer the first token that counts, see [`answer_log_probabilities`].
        steps (`int`, *optional*, defaults to 16): points of the path, at the middles of equal parts.

    Raises:
        ValueError: fewer than one step, or an empty answer.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be 1 or more; 16 to 64 are usual.")
    tokens = prompts.image_rows(prompts.image)  # (N, D')
    start = torch.zeros_like(tokens) if baseline is None else baseline.to(tokens).expand_as(tokens)  # (N, D')
    total = torch.zeros_like(tokens, dtype=torch.float32)  # (N, D')
    for step in range(steps):
        with torch.enable_grad():
            point = torch.lerp(start, tokens, (step + 0.5) / steps).detach().requires_grad_()  # (N, D')
            value = answer_log_probabilities(prompts, answers, [Change(prompts.image, point)], counted_from)  # (B,)
            total += torch.autograd.grad(value.sum(), point)[0].float()  # (N, D')
    each = ((tokens - start).float() * total / steps).sum(-1)  # (N,)
    return torch.zeros(prompts.image.shape, device=each.device).masked_scatter(prompts.image, each)


OTHER_IMAGE = "other_picture"
MAX_NEW_TOKENS = {"generative": 48, "polling": 8, "vqa": 16}


@torch.no_grad()
def mean_image_token(
    model: nn.Module,
    processor: Any,
    records: Iterable[Record],
    with_tags: bool = True,
    batch_size: int = 16,
    limit: int = 1000,
    progress: bool = True,
) -> torch.Tensor:
    """
    Mean (D',) of all tokens that lie on other images, as the language model reads them.

    Args:
        records: task records with images, disjoint from those that are ablated.
        with_tags (`bool`, *optional*, defaults to `True`): whether the images' tags are given (a router may mix them
            in).
        limit (`int`, *optional*, defaults to 1000): images that are used at most.

    Raises:
        ValueError: no record has an image.
    """
    parts = model_parts(model)
    places = ObjectTokens(processor.image_processor)
    total, count = torch.zeros((), dtype=torch.float64), 0
    stream = (record for record in islice(records, limit) if record["image"] is not None)
    with tqdm(desc="mean image token", unit="image", disable=not progress) as bar:
        while batch := list(islice(stream, batch_size)):
            prompts = read_records(parts, processor, batch, with_tags, question="?")
            on_image = places.on_image(prompts, [r["image"] for r in batch])  # a class token is no part of the image
            tokens = prompts.image_rows(on_image).double().cpu()  # (N, D')
            total, count = total + tokens.sum(0), count + len(tokens)
            bar.update(len(batch))
    if count == 0:
        raise ValueError("records holds no image to take a mean image token of: give some with images.")
    return (total / count).float().to(parts.model.device)


def ablated(prompts: PromptBatch, chosen: torch.Tensor, replacement: torch.Tensor | None = None) -> list[Change]:
    """What to read so that `chosen` (B, T) bool image tokens are replaced by `replacement` (D',), zeros by default."""
    if replacement is None:
        replacement = torch.zeros_like(prompts.image_rows(prompts.image)[0])
    return [Change(chosen, replacement)]


@dataclass(eq=False)
class TokenAblation(Evaluator):
    """Replaces object tokens, and as many random, register and high-gradient tokens, and asks again.

    Keys of the result, for each form of question F ("generative", "polling", "vqa"), each choice of tokens C (`object`,
    `random`, `register`, `gradient`) and each buffer b of patches around the object, whose number of tokens the rivals
    share:

    * `F_clean`: share of objects identified with nothing replaced, with `_low` and `_high`; `F_samples`: how many were
      asked about.
    * `F_other_picture`: the same where another sample's image stands in place of the own one, which is what guessing
      is worth (tags and question stay). Only where there are two records or more.
    * `F_drop_C_b`: of those identified, the share that is no longer, with `_low` and `_high`.
    * `F_object_over_random_b`: the object's drop minus the random tokens', with its interval.
    * `tokens_b`: mean number of tokens replaced. `skipped`: objects that the image processor crops away.

    Args:
        replacement (`torch.Tensor` (D,), *optional*): as of [`mean_image_token`]; zeros by default.
        forms, rivals (`Sequence[str]`, *optional*): which of `FORMS` and `RIVALS`.
        buffers (`Sequence[int]`, *optional*, defaults to `(0, 1, 2)`): patches around the object's own.
        with_tags (`bool`, *optional*, defaults to `True`): whether the model is also told the tags, which name objects.
        gradient_steps (`int`, *optional*, defaults to 16): of [`integrated_gradients`].
        seed (`int`, *optional*, defaults to 0): draws the random tokens.
        **options: of [`Evaluator`].

    Raises:
        ValueError: an unknown form or rival, or a negative buffer.
    """

    depends_on = ("forms", "rivals", "buffers", "with_tags", "gradient_steps", "seed")

    replacement: torch.Tensor | None = None
    forms: Sequence[str] = FORMS
    rivals: Sequence[str] = RIVALS
    buffers: Sequence[int] = (0, 1, 2)
    with_tags: bool = True
    gradient_steps: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.forms, self.rivals, self.buffers = tuple(self.forms), tuple(self.rivals), tuple(self.buffers)
        for argument, values, known in (("forms", self.forms, FORMS), ("rivals", self.rivals, RIVALS)):
            for value in values:
                if value not in known:
                    raise ValueError(f"{argument} holds {value!r}: choose among {', '.join(known)}.")
        if not self.forms or not self.buffers or min(self.buffers) < 0:
            raise ValueError(
                f"forms={list(self.forms)}, buffers={list(self.buffers)}: give at least one of each, buffers 0 or more."
            )

    @property
    def primary_metric(self) -> str:  # type: ignore[override]
        return f"{self.forms[-1]}_drop_object_{self.buffers[0]}"

    def describe(self) -> str:
        return "token ablation"

    def settings(self) -> dict[str, Any]:
        vector = b"" if self.replacement is None else self.replacement.float().cpu().numpy().tobytes()
        return {
            **super().settings(),
            "replacement": hashlib.sha256(vector).hexdigest()[:12] if vector else "zero",
            "control": OTHER_IMAGE,
        }

    def __call__(self, model: Any, processor: Any, records: Iterable[Record]) -> dict[str, float]:
        some = as_map_style(records)
        if len(some) > 1:
            some = SwappableRecords(some, self.seed, what=("image",))
        return super().__call__(model, processor, some)

    def row(self, record: Record) -> Row | None:
        probe = object_probe(record)
        asked = [form for form in self.forms if probe is not None and form in probe.questions]
        if probe is None or not asked:
            return None
        row = {"id": probe.id, "object": probe.name, "box": list(probe.box), "forms": asked}
        return {**row, **image_group(record)}

    def predict(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        parts = model_parts(model)
        tokens = ObjectTokens(processor.image_processor)
        probes = []
        for record, row in zip(records, rows, strict=True):
            probe = object_probe(record)
            assert probe is not None  # `row` has left the others out
            row |= {"answers": {}, "identified": {}, "tokens": {}, "skipped": False}
            probes.append((probe, row, record.get("donors", {}).get("image")))
        asked = read_prompts(parts, processor, [probe.image for probe, _, _ in probes], ["?"] * len(probes))
        for place, (probe, row, _) in enumerate(probes):
            row["skipped"] = tokens.or_none(asked, place, probe.image, probe.box) is None
        for form in self.forms:
            some = [(probe, row, other) for probe, row, other in probes if form in row["forms"] and not row["skipped"]]
            if some:
                self._ask(parts, processor, tokens, form, [(probe, row) for probe, row, _ in some])
            moved = [(replace(probe, image=other), row) for probe, row, other in some if other]
            if moved:
                self._guess(parts, processor, form, moved)

    def _guess(self, parts: Any, processor: Any, form: str, pairs: Sequence[tuple[ObjectProbe, Row]]) -> None:
        """Asks for the objects of one image before another one: what is identified then was guessed."""
        prompts = read_probes(parts, processor, [probe for probe, _ in pairs], form, self.with_tags)
        texts = answer_texts(processor, greedy_answers(prompts, max_new_tokens=MAX_NEW_TOKENS[form]))
        self._note(form, OTHER_IMAGE, pairs, texts)

    def _ask(
        self, parts: Any, processor: Any, tokens: ObjectTokens, form: str, pairs: Sequence[tuple[ObjectProbe, Row]]
    ) -> None:
        """Asks in one form: with nothing replaced, then those that are identified with tokens replaced."""
        prompts = read_probes(parts, processor, [probe for probe, _ in pairs], form, self.with_tags)
        answers = greedy_answers(prompts, max_new_tokens=MAX_NEW_TOKENS[form])
        self._note(form, "clean", pairs, answer_texts(processor, answers))
        seen = [place for place, (_, row) in enumerate(pairs) if row["identified"][form]["clean"]]
        if not seen:
            return
        pairs = [pairs[place] for place in seen]
        prompts = read_probes(parts, processor, [probe for probe, _ in pairs], form, self.with_tags)
        gradients = None
        if "gradient" in self.rivals:
            spans = [
                self._target(processor.tokenizer, form, probe, answers[i])
                for i, (probe, _) in zip(seen, pairs, strict=True)
            ]
            targets = [answers[i][:stop] for i, (_, stop) in zip(seen, spans, strict=True)]
            gradients = integrated_gradients(
                prompts, targets, self.replacement, [start for start, _ in spans], self.gradient_steps
            )  # (B, T)
        on_image = tokens.on_image(prompts, [probe.image for probe, _ in pairs])  # (B, T)
        for buffer in self.buffers:
            chosen = torch.stack(
                [tokens(prompts, row, probe.image, probe.box, buffer) for row, (probe, _) in enumerate(pairs)]
            )  # (B, T)
            counts = chosen.sum(-1)  # (B,)
            choices = {"object": chosen}
            for rival in self.rivals:
                choices[rival] = self._rival(
                    rival, prompts, on_image, counts, [probe.id for probe, _ in pairs], gradients
                )
            for name, some in choices.items():
                changed = greedy_answers(prompts, ablated(prompts, some, self.replacement), MAX_NEW_TOKENS[form])
                self._note(form, f"{name}_{buffer}", pairs, answer_texts(processor, changed))
            for (_, row), count in zip(pairs, counts.tolist(), strict=True):
                row["tokens"][str(buffer)] = count

    def _rival(
        self,
        rival: str,
        prompts: PromptBatch,
        on_image: torch.Tensor,
        counts: torch.Tensor,
        ids: Sequence[str],
        gradients: Any,
    ) -> torch.Tensor:
        if rival == "random":
            return random_tokens(on_image, counts, ids, self.seed)
        scores = prompts.vision_norms() if rival == "register" else gradients  # (B, T)
        return highest_tokens(scores, counts, on_image)

    def _note(self, form: str, condition: str, pairs: Sequence[tuple[ObjectProbe, Row]], texts: Sequence[str]) -> None:
        for (probe, row), text in zip(pairs, texts, strict=True):
            row["answers"].setdefault(form, {})[condition] = text
            row["identified"].setdefault(form, {})[condition] = probe.is_identified(form, text)

    def _target(self, tokenizer: Any, form: str, probe: ObjectProbe, answer: Sequence[int]) -> tuple[int, int]:
        """Tokens of the answer that say what was identified: of a description the object's name, else all."""
        if form != "generative":
            return 0, len(answer)
        ends = [len(tokenizer.decode(answer[:stop], skip_special_tokens=True)) for stop in range(len(answer) + 1)]
        span = mention(probe.name, tokenizer.decode(answer, skip_special_tokens=True))
        assert span is not None  # the description was found to mention it
        start = max(place for place, end in enumerate(ends) if end <= span[0])
        stop = min(place for place, end in enumerate(ends) if end >= span[1])
        return start, max(stop, start + 1)

    def score(self, rows: list[Row]) -> dict[str, float]:
        asked = [row for row in rows if not row["skipped"]]
        metrics: dict[str, float] = {"skipped": float(len(rows) - len(asked))}
        for buffer in self.buffers:
            counts = [row["tokens"][str(buffer)] for row in asked if str(buffer) in row["tokens"]]
            metrics[f"tokens_{buffer}"] = float(np.mean(counts)) if counts else 0.0
        for form in self.forms:
            found = [row for row in asked if form in row["identified"]]
            metrics[f"{form}_samples"] = float(len(found))
            metrics[f"{form}_clean"] = 0.0
            for name in ("clean", OTHER_IMAGE):
                if own := [row for row in found if name in row["identified"][form]]:
                    seen = [row["identified"][form][name] for row in own]
                    metrics |= estimate(seen, groups=groups_of(own)).flat(f"{form}_{name}")
            kept = [row for row in found if row["identified"][form]["clean"]]
            if kept:
                metrics |= self._drops(form, kept)
        return metrics

    def _drops(self, form: str, kept: Sequence[Row]) -> dict[str, float]:
        metrics = {}
        for buffer in self.buffers:
            lost = {
                name: np.array([not row["identified"][form][f"{name}_{buffer}"] for row in kept], dtype=float)
                for name in ("object", *self.rivals)
            }
            columns = {f"{form}_drop_{name}_{buffer}": values for name, values in lost.items()}
            if "random" in lost:
                columns[f"{form}_object_over_random_{buffer}"] = lost["object"] - lost["random"]
            for key, values in columns.items():
                metrics |= estimate(values, groups=groups_of(kept)).flat(key)
        return metrics
