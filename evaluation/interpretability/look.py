"""One answer about one image, and what it rests on: attention, ablation, the same question under other circumstances,
and what the logit lens reads in each patch.

Attention is the mean over heads and layers of the position that generates a word. The ablation effect is how much of
the word's probability is lost, in nats, once the image tokens in one cell of the image are replaced by the mean image
token. Attention says what was read, ablation what was needed; they often differ (Jain and Wallace, "Attention is not
Explanation", arXiv 1902.10186).
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ...processing.degradations.degradations import degrade_image
from ..probing.answers import (
    answer_log_probabilities,
    answer_text,
    attention_on_prompt,
    greedy_answers,
)
from ..probing.image_features import Change
from ..probing.parts import ModelParts, model_parts
from ..probing.prompt_batch import PromptBatch
from ..probing.prompt_reading import read_prompts
from ..probing.token_grids import TokenGrid, token_grids
from ..robustness.router_weights import image_trust
from .logit_lens import read_words

logger = logging.getLogger(__name__)

GROUPS = ("image", "soft_prompt", "tag_words", "question", "rest")
DEGRADATIONS = ("noise", "blur", "occlusion")
_MOST_CELLS, _MOST_DEPTHS, _MOST_RASTER = 64, 9, 48


@dataclass(frozen=True)
class Circumstance:
    """
    The same question under other circumstances.

    Attributes:
        name: what was changed. answer: what the model says then.
        kept: how probable its first answer still is there, as a share of how probable it was (geometric mean of its
            tokens), from 0 to above 1.
        image: what it was shown, `None` where it was shown nothing.
    """

    name: str
    answer: str
    kept: float
    image: Image.Image | None = None


@dataclass(frozen=True)
class LensLevel:
    """
    What the logit lens reads in the patches of one view of the image (whole, or its tiles).

    Attributes:
        name: of the view. boxes (N, 4): of the patches, as shares of the image's sides.
        words (L', N, k): the likeliest words; shares (L', N, k): their probabilities.
    """

    name: str
    boxes: np.ndarray
    words: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True)
class Look:
    """
    Attributes:
        model, question, answer: in words.
        image: the stored image.
        words: of the answer, with what follows them. probabilities (W,): of each, geometric mean of its tokens.
        attention (W, R, C): share of the attention in the image that lies on each cell of a fine raster; empty where
            tokens have no place on the image.
        groups: names. group_attention (W, G): share of all attention that each group of the prompt receives.
        effect (W, r, c): loss in nats without each cell; negative where the word becomes likelier.
        circumstances: [`Circumstance`]s.
        trust: of the image by the model's reliability router, 0 … 1; `None` without one.
        depths: names of the depths that the lens was read at. lens: its views.
        notes: what this family cannot be asked, and why, one line for each reason.
    """

    model: str
    question: str
    answer: str
    image: Image.Image
    words: list[str]
    probabilities: np.ndarray
    attention: np.ndarray
    groups: list[str]
    group_attention: np.ndarray
    effect: np.ndarray
    circumstances: list[Circumstance]
    depths: list[str] = field(default_factory=list)
    lens: list[LensLevel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trust: float | None = None


@torch.no_grad()
def look(
    model: Any,
    processor: Any,
    image: Image.Image,
    question: str,
    tags: Sequence[Any] = (),
    name: str = "",
    max_new_tokens: int = 32,
    severity: int = 4,
    cells: int = _MOST_CELLS,
    top_k: int = 3,
    progress: bool = False,
) -> Look:
    """
    Asks once, and then asks why.

    Args:
        model, processor: any image-text-to-text model in evaluation mode, and what belongs to it.
        image, question: what is asked about, and what.
        tags (*optional*): (name, score) pairs, for Poise models.
        name (*optional*): how to call the model.
        max_new_tokens (`int`, *optional*, defaults to 32): longest answer.
        severity (`int`, *optional*, defaults to 4): of the degradations, 1 to 5.
        cells (`int`, *optional*, defaults to 64): parts of the image that are taken away one by one, at most.
        top_k (`int`, *optional*, defaults to 3): words of the lens for each patch and depth.

    Raises:
        ValueError: the processor does not belong to the model.
    """
    parts = model_parts(model)
    image = image.convert("RGB")
    prompts = read_prompts(parts, processor, [image], [question], [list(tags)])
    tokens = greedy_answers(prompts, max_new_tokens=max_new_tokens)[0]
    notes: dict[str, list[str]] = {}
    places = "places of the image tokens, so no effect and no logit lens"
    grids = _or_note(notes, places, lambda: token_grids(prompts, 0, image, processor.image_processor)) or []
    asked = _Asked(parts, processor, prompts, tokens, image, question, list(tags), max_new_tokens)
    words, spans = asked.words()
    each = asked.token_log_probabilities(prompts)  # (A,)
    empty = np.zeros((len(words), 0, 0))
    attention, effect, group_attention = empty, empty, np.zeros((len(words), 0))
    if tokens:
        received = _or_note(notes, "attention", lambda: attention_on_prompt(prompts, [tokens], each=True))
        if received is not None:
            received = received[:, :, 0].nanmean(1).cpu()  # (A, T)
            by_word = torch.stack([received[start:stop].mean(0) for start, stop in spans])  # (W, T)
            group_attention = _shares(prompts, by_word)
            if grids:
                on_image = by_word[:, prompts.image[0].cpu()].numpy()  # (W, P)
                attention = np.stack([painted(grids, row, image.size) for row in on_image])
        if grids:
            effects = _or_note(notes, "effect", lambda: _effects(asked, grids, each, spans, cells, progress))
            effect = empty if effects is None else effects
    depths, lens = [], []
    if grids:
        read = _or_note(notes, "logit lens", lambda: _lens(prompts, processor, grids, image, top_k))
        depths, lens = read or (depths, lens)
    return Look(
        model=name or type(parts.model).__name__,
        question=question,
        answer=answer_text(processor, tokens),
        image=image,
        words=words,
        probabilities=np.array([math.exp(float(each[start:stop].mean())) for start, stop in spans]),
        attention=attention,
        groups=list(GROUPS),
        group_attention=group_attention,
        effect=effect,
        circumstances=_circumstances(asked, each, severity, notes),
        depths=depths,
        lens=lens,
        notes=[f"{', '.join(skipped)}: {reason}" for reason, skipped in notes.items()],
        trust=image_trust(model, processor, image, question, tags),
    )


def _or_note(notes: dict[str, list[str]], name: str, ask: Callable[[], Any]) -> Any:
    """What `ask` finds, or `None` and a note of why this family cannot be asked for what has that name."""
    try:
        return ask()
    except ValueError as error:
        notes.setdefault(str(error), []).append(name)
        return None


@dataclass(frozen=True)
class _Asked:
    """One question, its first answer, and ways to ask it again."""

    parts: ModelParts
    processor: Any
    prompts: PromptBatch
    tokens: list[int]
    image: Image.Image
    question: str
    tags: list[Any]
    max_new_tokens: int

    def words(self) -> tuple[list[str], list[tuple[int, int]]]:
        """Words of the answer and the tokens [start, stop) of each; a token within a word belongs to it."""
        ends = [answer_text(self.processor, self.tokens[:stop], strip=False) for stop in range(len(self.tokens) + 1)]
        words: list[str] = []
        spans: list[tuple[int, int]] = []
        for place, (before, after) in enumerate(zip(ends, ends[1:], strict=False)):
            piece = after[len(before) :]
            if words and piece and not piece[0].isspace() and not words[-1][-1:].isspace() and piece[0].isalnum():
                words[-1] += piece
                spans[-1] = (spans[-1][0], place + 1)
            elif words and not piece.strip():
                words[-1] += piece
                spans[-1] = (spans[-1][0], place + 1)
            else:
                words.append(piece)
                spans.append((place, place + 1))
        return [word.strip() or "␣" for word in words], spans

    def token_log_probabilities(self, prompts: PromptBatch, changes: Sequence[Change] = ()) -> np.ndarray:
        """Of each token of the first answer, (A,)."""
        if not self.tokens:
            return np.zeros(0)
        return answer_log_probabilities(prompts, [self.tokens], changes, each=True)[0].cpu().numpy()

    def again(self, name: str, before: np.ndarray, prompts: PromptBatch, image: Image.Image | None) -> Circumstance:
        tokens = greedy_answers(prompts, max_new_tokens=self.max_new_tokens)[0]
        after = self.token_log_probabilities(prompts)
        kept = math.exp(float((after - before).mean())) if len(before) else 1.0
        return Circumstance(name, answer_text(self.processor, tokens), kept, image)


def _circumstances(asked: _Asked, before: np.ndarray, severity: int, notes: dict[str, list[str]]) -> list[Circumstance]:
    """The question without the image, without its words, and before degraded images."""
    found = []

    def ask(name: str, image: Image.Image | None, question: str, tags: list[Any]) -> None:
        def answered() -> Circumstance:
            prompts = read_prompts(asked.parts, asked.processor, [image], [question], [tags])
            return asked.again(name, before, prompts, image)

        circumstance = _or_note(notes, f"the answer {name}" if name.startswith("without") else name, answered)
        if circumstance is not None:
            found.append(circumstance)

    if asked.parts.has_image_tokens:
        ask("without the image", None, asked.question, [])
    grey = Image.new("RGB", asked.image.size, tuple(int(v) for v in np.asarray(asked.image).mean((0, 1))))
    ask("an empty image", grey, asked.question, asked.tags)
    ask("without the question's words", asked.image, "", asked.tags)
    if asked.tags:
        ask("without the tags", asked.image, asked.question, [])
    for name in DEGRADATIONS:
        degraded = degrade_image(asked.image, name, severity)
        ask(f"{name.removeprefix('image_')}, severity {severity} of 5", degraded, asked.question, asked.tags)
    return found


def _shares(prompts: PromptBatch, received: torch.Tensor) -> np.ndarray:
    """Attention of each word on each group, (W, G), from (W, T); what is left goes to the answer itself."""
    nothing = torch.zeros_like(prompts.image[0]).cpu()
    masks = [nothing if mask is None else mask[0].cpu() for mask in _masks(prompts)]
    rest = prompts.attention_mask[0].bool().cpu() & ~torch.stack(masks).any(0)  # template, first position
    return torch.stack([received[:, mask].sum(-1) for mask in (*masks, rest)], dim=-1).numpy()


def _masks(prompts: PromptBatch) -> tuple[torch.Tensor | None, ...]:
    return prompts.image, prompts.soft_prompt, prompts.tag_words, prompts.question_words


def painted(grids: Sequence[TokenGrid], values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Values (P,) of image tokens as densities over the image, (R, C), adding up to 1: each token's is spread evenly over
    its part of the image; what lies in padding is left out.
    """
    longest = max(max(grid.tokens.shape) for grid in grids)
    most = min(_MOST_RASTER, max(8, 2 * longest))
    columns = most if size[0] >= size[1] else max(1, round(most * size[0] / size[1]))
    rows = most if size[1] >= size[0] else max(1, round(most * size[1] / size[0]))
    raster = np.zeros((rows, columns))
    for grid in grids:
        boxes = grid.boxes()  # (R', C', 4)
        y = _overlaps(boxes[:, 0, 1], boxes[:, 0, 3], rows, size[1])  # (R', R) shares of each token row
        x = _overlaps(boxes[0, :, 0], boxes[0, :, 2], columns, size[0])  # (C', C)
        raster += y.T @ values[grid.tokens] @ x
    return raster / max(raster.sum(), 1e-12)


def _overlaps(starts: np.ndarray, stops: np.ndarray, count: int, length: float) -> np.ndarray:
    """Share of each interval that lies in each of `count` equal parts of [0, length]."""
    edges = np.linspace(0, length, count + 1)
    overlap = np.minimum(stops[:, None], edges[1:]) - np.maximum(starts[:, None], edges[:-1])
    return overlap.clip(min=0) / np.maximum(stops - starts, 1e-9)[:, None]


def _effects(
    asked: _Asked,
    grids: Sequence[TokenGrid],
    before: np.ndarray,
    spans: Sequence[tuple[int, int]],
    cells: int,
    progress: bool,
) -> np.ndarray:
    """Loss of each word's log-probability without each cell of the image, (W, r, c)."""
    prompts, (width, height) = asked.prompts, asked.image.size
    rows, columns = cell_grid(grids, width, height, cells)
    mean = prompts.image_rows(prompts.image).float().mean(0)  # (D',)
    where = prompts.image[0].nonzero()[:, 0]  # (P,)
    cell_of = np.full(len(where), -1)
    for grid in grids:
        boxes = grid.boxes()
        x, y = boxes[..., [0, 2]].mean(-1) / width, boxes[..., [1, 3]].mean(-1) / height  # middles
        inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
        number = (y * rows).astype(int).clip(0, rows - 1) * columns + (x * columns).astype(int).clip(0, columns - 1)
        cell_of[grid.tokens] = np.where(inside, number, -1)
    effect = np.zeros((len(spans), rows * columns))
    for cell in tqdm(range(rows * columns), desc="ablation", unit="cell", disable=not progress):
        chosen = torch.from_numpy(np.flatnonzero(cell_of == cell))
        if not len(chosen):
            continue
        places = torch.zeros_like(prompts.image)
        places[0, where[chosen.to(where.device)]] = True
        after = asked.token_log_probabilities(prompts, [Change(places, mean)])  # (A,)
        effect[:, cell] = [(before - after)[start:stop].sum() for start, stop in spans]
    return effect.reshape(len(spans), rows, columns)


def cell_grid(grids: Sequence[TokenGrid], width: int, height: int, most: int) -> tuple[int, int]:
    """(rows, columns) of about square cells: as many as the finest view has patches on the image, `most` at most."""
    finest = max(grids, key=lambda grid: grid.tokens.size * width * height / max(grid.area, 1e-9))
    patch = math.sqrt(finest.area / finest.tokens.size)
    side = max(patch, math.sqrt(width * height / most))
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    while rows * columns > most:
        rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
    return rows, columns


def _lens(
    prompts: PromptBatch, processor: Any, grids: Sequence[TokenGrid], image: Image.Image, top_k: int
) -> tuple[list[str], list[LensLevel]]:
    """The likeliest words of every patch at some depths."""
    where = prompts.image[0].nonzero()[:, 0]  # (P,)
    chosen, ids, shares, _ = read_words(prompts, where, top_k, most_depths=_MOST_DEPTHS)
    tokenizer = processor.tokenizer
    texts = {token: tokenizer.decode([int(token)]) for token in np.unique(ids)}
    words = np.vectorize(texts.__getitem__, otypes=[object])(ids)
    scale = np.array([image.width, image.height] * 2)
    levels = []
    for name, shown in _views(grids, image).items():
        tokens = np.concatenate([grid.tokens.ravel() for grid in shown])
        boxes = np.concatenate([grid.boxes().reshape(-1, 4) for grid in shown]) / scale
        levels.append(LensLevel(name, boxes, words[:, tokens], shares[:, tokens]))
    return ["input" if depth == 0 else f"layer {depth}" for depth in chosen], levels


def _views(grids: Sequence[TokenGrid], image: Image.Image) -> dict[str, list[TokenGrid]]:
    """Grids that show the whole image, each by itself, and its tiles together."""
    views: dict[str, list[TokenGrid]] = {}
    whole = [grid for grid in grids if len(grids) == 1 or grid.area >= 0.9 * image.width * image.height]
    for grid in sorted(whole, key=lambda grid: -grid.tokens.size):
        views[f"whole image, {grid.tokens.shape[0]} × {grid.tokens.shape[1]}"] = [grid]
    tiles = [grid for grid in grids if not any(grid is other for other in whole)]
    if tiles:
        views = {f"{len(tiles)} tiles": tiles, **views}
    return views
