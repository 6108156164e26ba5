"""Logit lens over visual tokens: what each image and soft-prompt token would say if the model stopped at a layer.

nostalgebraist, "interpreting GPT: the logit lens" (2020); over image tokens Neo et al., arXiv 2410.07149:
the states of every layer go through the language model's own final norm and head. At the last layer that is the model's
own output at those positions.

Of an encoder-decoder the encoder is read. Its states were never meant for the head, which learned to read the decoder:
words may appear where the two share a space (T5's tied embeddings help), and their absence says little.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..probing.parts import model_parts, vocabulary_size
from ..probing.prompt_batch import PromptBatch
from ..probing.prompt_reading import read_prompts
from ..probing.residual_stream import read_off, residual_stream
from ..probing.token_grids import TokenGrid, token_grids


@dataclass
class LogitLens:
    """
    What was read off at L + 1 depths (0 is before the first layer, L after the last) for N = P + K visual tokens.

    Attributes:
        top_ids, top_probabilities (L + 1, N, k): the likeliest words, best first.
        word_probabilities (L + 1, N, W): of the chosen words.
        words: their names. word_ids: the token ids that count as each of them.
        vocabulary: token id → text, for every id in `top_ids`.
        grid: (rows, columns); tokens `num_prefix` to `num_prefix + rows * columns` are the patches in reading order.
        num_prefix, num_prompt: class tokens before the patches, soft-prompt tokens behind them.
        image: what the vision tower sees, as it was before resizing; patches tile it. region: (x1, y1, x2, y2) of it
            in pixels of the stored image.
        question, title: what was asked, and how to call the image.
        reads_encoder: whether these are an encoder's states, see the module's docstring.
        object_patches (rows, columns) bool: where the object is that is asked about, if that is known.
    """

    top_ids: np.ndarray
    top_probabilities: np.ndarray
    word_probabilities: np.ndarray
    words: list[str]
    word_ids: list[list[int]]
    vocabulary: dict[int, str]
    grid: tuple[int, int]
    num_prefix: int
    num_prompt: int
    image: Image.Image
    question: str = ""
    title: str = ""
    reads_encoder: bool = False
    region: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    object_patches: np.ndarray | None = None

    @property
    def num_layers(self) -> int:
        return self.top_ids.shape[0] - 1

    def heat(self, word: str, layer: int) -> np.ndarray:
        """Probability of a chosen word over the patches, (rows, columns)."""
        if word not in self.words:
            raise ValueError(f"word={word!r} was not chosen: name it in `words`; chosen are {', '.join(self.words)}.")
        first = self.num_prefix
        patches = self.word_probabilities[layer, first : first + self.grid[0] * self.grid[1], self.words.index(word)]
        return patches.reshape(self.grid)

    def says_word(self) -> np.ndarray:
        """Whether the likeliest word is one of the chosen ones, (L + 1, rows, columns) bool."""
        chosen = sorted({token for ids in self.word_ids for token in ids})
        first = self.num_prefix
        likeliest = self.top_ids[:, first : first + self.grid[0] * self.grid[1], 0]  # (L + 1, P)
        return np.isin(likeliest, chosen).reshape(-1, *self.grid)

    def save(self, path: str | os.PathLike) -> None:
        """The arrays as a compressed `.npz`."""
        np.savez_compressed(
            path,
            top_ids=self.top_ids,
            top_probabilities=self.top_probabilities,
            word_probabilities=self.word_probabilities,
            words=np.array(self.words, dtype=str),
            grid=np.array(self.grid),
            num_prefix=self.num_prefix,
            num_prompt=self.num_prompt,
        )


@torch.no_grad()
def logit_lens(
    model: nn.Module,
    processor: Any,
    image: Image.Image,
    question: str,
    tags: Sequence[Any] = (),
    words: Sequence[str] = (),
    top_k: int = 5,
    title: str = "",
) -> LogitLens:
    """
    Reads every visual token at every layer.

    Args:
        model: any image-text-to-text model, in evaluation mode.
        processor: the model's.
        image: the stored image.
        question: what is asked; in a decoder-only model the image tokens that stand before it do not see it.
        tags (*optional*): (name, score) pairs, for Poise models.
        words (`Sequence[str]`, *optional*): whose probability is wanted everywhere; a word is its first token, with and
            without a space before it.
        top_k (`int`, *optional*, defaults to 5): how many words a token and layer.

    Raises:
        ValueError: `top_k` or a word does not fit the vocabulary, or the image tokens have no place on the image.
    """
    parts = model_parts(model)
    parts.check_image_tokens("logit lens of image tokens")
    tokenizer = processor.tokenizer
    ids_of_words = [word_token_ids(tokenizer, word) for word in words]
    size = vocabulary_size(parts)
    if not 1 <= top_k <= size:
        raise ValueError(f"top_k={top_k} must lie between 1 and the {size} words of the vocabulary.")
    prompts = read_prompts(parts, processor, [image], [question], [list(tags)])
    view = finest_view(token_grids(prompts, 0, image, processor.image_processor))
    where = prompts.image[0].nonzero()[:, 0]  # (P,)
    prefix = int(view.tokens.min()) if view.tokens.size + int(view.tokens.min()) == len(where) else 0
    chosen = np.concatenate([np.arange(prefix), view.tokens.ravel()])
    places = where[torch.as_tensor(chosen, device=where.device)]  # (N,)
    if prompts.soft_prompt is not None:
        places = torch.cat([places, prompts.soft_prompt[0].nonzero()[:, 0]])
    _, top_ids, top_probabilities, word_probabilities = read_words(prompts, places, top_k, ids_of_words)
    return LogitLens(
        top_ids=top_ids,
        top_probabilities=top_probabilities,
        word_probabilities=word_probabilities,
        words=list(words),
        word_ids=ids_of_words,
        vocabulary={int(token): tokenizer.decode([int(token)]) for token in np.unique(top_ids)},
        grid=(view.tokens.shape[0], view.tokens.shape[1]),
        num_prefix=prefix,
        num_prompt=len(places) - len(chosen),
        image=image.convert("RGB").crop(tuple(round(edge) for edge in view.region)),
        region=view.region,
        question=question,
        title=title,
        reads_encoder=parts.is_encoder_decoder,
    )


def finest_view(grids: Sequence[TokenGrid]) -> TokenGrid:
    """One grid over the image: its tiles put together where it has some, else the grid with the most patches."""
    whole = max(grids, key=lambda grid: grid.area)
    tiles = [grid for grid in grids if grid.area < 0.9 * whole.area]
    ordered = sorted(tiles, key=lambda grid: (round(grid.region[1]), round(grid.region[0])))
    rows = len({round(grid.region[1]) for grid in tiles})
    if not tiles or len(tiles) % rows or len({grid.tokens.shape for grid in tiles}) > 1:
        return max(grids, key=lambda grid: grid.tokens.size)
    columns = len(tiles) // rows
    tokens = np.block([[ordered[row * columns + column].tokens for column in range(columns)] for row in range(rows)])
    return TokenGrid(tokens, (*ordered[0].region[:2], *ordered[-1].region[2:]))


def word_token_ids(tokenizer: Any, word: str) -> list[int]:
    """
    Ids that begin `word`, with and without a space before it.

    Raises:
        ValueError: the tokenizer knows no token for it.
    """
    if not word.strip():
        raise ValueError(f"words holds {word!r}: name a word.")
    ids = set()
    for text in (f" {word.strip()}", word.strip()):
        tokens = [
            token
            for token in tokenizer(text, add_special_tokens=False)["input_ids"]
            if tokenizer.decode([token]).strip()
        ]
        ids |= set(tokens[:1]) - {tokenizer.unk_token_id}
    if not ids:
        raise ValueError(f"words holds {word!r}, which the model's tokenizer does not know: name another word.")
    return sorted(ids)


def read_words(
    prompts: PromptBatch,
    places: torch.Tensor,
    top_k: int,
    ids_of_words: Sequence[Sequence[int]] = (),
    most_depths: int | None = None,
) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """
    What the lens reads of the tokens at `places` (N,) of one prompt.

    Args:
        ids_of_words: token ids that count as each of W chosen words.
        most_depths (`int`, *optional*): evenly chosen ones of the L + 1 depths; all by default.

    Returns:
        The depths (D), ids and probabilities (D, N, k) of their likeliest words, probabilities (D, N, W) of the chosen.
    """
    stream = residual_stream(prompts)
    last = len(stream.states) - 1
    depths = sorted({round(depth) for depth in np.linspace(0, last, min(most_depths or last + 1, last + 1))})
    shape = (len(depths), len(places))
    top_ids = np.zeros((*shape, top_k), dtype=np.int64)
    top_probabilities = np.zeros((*shape, top_k), dtype=np.float32)
    word_probabilities = np.zeros((*shape, len(ids_of_words)), dtype=np.float32)
    for row, depth in enumerate(depths):
        start = 0
        for logits in read_off(prompts, stream, depth, places):
            some = slice(start, start := start + len(logits))
            probabilities = logits.float().softmax(-1)  # (n, V)
            best = probabilities.topk(top_k, dim=-1)
            top_ids[row, some] = best.indices.cpu().numpy()
            top_probabilities[row, some] = best.values.cpu().numpy()
            for place, ids in enumerate(ids_of_words):
                word_probabilities[row, some, place] = probabilities[:, list(ids)].sum(-1).cpu().numpy()
    return depths, top_ids, top_probabilities, word_probabilities
