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

from ..probing.model_parts import ModelParts, model_parts
from ..probing.visual_prompts import VisualPrompts, read_prompts
from .objects import ObjectPatches

_CHUNK = 64  # tokens whose logits exist at once: 64 × 150,000 words are 40 MB


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
        picture: what the vision tower sees, as it was before resizing; patches tile it.
        question, title: what was asked, and how to call the picture.
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
    picture: Image.Image
    question: str = ""
    title: str = ""
    reads_encoder: bool = False
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
        model: a Poise model or a `LlavaForConditionalGeneration`, in evaluation mode.
        processor: the model's.
        image: the stored picture.
        question: what is asked; in a decoder-only model the image tokens that stand before it do not see it.
        tags (*optional*): (name, score) pairs, for Poise models.
        words (`Sequence[str]`, *optional*): whose probability is wanted everywhere; a word is its first token, with and
            without a space before it.
        top_k (`int`, *optional*, defaults to 5): how many words a token and layer.

    Raises:
        ValueError: `top_k` or a word does not fit the vocabulary, the model is of another kind, or it changes logits
            after its head, so that norm and head alone are not what it says.
    """
    parts = model_parts(model)
    tokenizer = processor.tokenizer
    ids_of_words = [word_token_ids(tokenizer, word) for word in words]
    vocabulary_size = parts.model.get_output_embeddings().weight.shape[0]
    if not 1 <= top_k <= vocabulary_size:
        raise ValueError(f"top_k={top_k} must lie between 1 and the {vocabulary_size} words of the vocabulary.")
    prompts = read_prompts(parts, processor, [image], [question], [list(tags)])
    states = residual_stream(prompts)  # (L + 1, T, D)
    places = torch.cat([prompts.image_places, prompts.prompt_places], dim=1)[0]  # (N,)
    top_ids, top_probabilities, word_probabilities = _read_off(parts, states[:, places], ids_of_words, top_k)
    patches = ObjectPatches(processor.image_processor, parts.grid)
    return LogitLens(
        top_ids=top_ids,
        top_probabilities=top_probabilities,
        word_probabilities=word_probabilities,
        words=list(words),
        word_ids=ids_of_words,
        vocabulary={int(token): tokenizer.decode([int(token)]) for token in np.unique(top_ids)},
        grid=parts.grid,
        num_prefix=parts.num_prefix_tokens,
        num_prompt=parts.num_prompt_tokens,
        picture=patches.seen_picture(image),
        question=question,
        title=title,
        reads_encoder=parts.is_encoder_decoder,
    )


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


@torch.no_grad()
def residual_stream(prompts: VisualPrompts) -> torch.Tensor:
    """
    States of one prompt before each layer and before the final norm, (L + 1, T, D).

    Raises:
        ValueError: final norm and head do not give the model's own logits.
    """
    parts = prompts.parts
    states: list[torch.Tensor] = []

    def keep(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        states.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in (*parts.layers, parts.final_norm)]
    try:
        if parts.is_encoder_decoder:
            parts.reader(inputs_embeds=prompts.embeddings, attention_mask=prompts.attention_mask)
            own = None
        else:
            own = parts.model(
                inputs_embeds=prompts.embeddings,
                attention_mask=prompts.attention_mask,
                position_ids=prompts.position_ids,
                logits_to_keep=1,
                use_cache=False,
            ).logits[0, -1]  # (V,)
    finally:
        for handle in handles:
            handle.remove()
    stream = torch.cat(states)  # (L + 1, T, D)
    if own is not None:
        read = parts.head(parts.final_norm(stream[-1, -1:]))[0]  # (V,)
        if not torch.allclose(read.float(), own.float(), rtol=1e-2, atol=1e-2 * float(own.float().abs().max())):
            raise ValueError(
                f"model={type(parts.model).__name__} changes its logits after norm and head (scaling, a soft cap), so "
                "what the logit lens reads would not be its own: give a model without."
            )
    return stream


def _read_off(
    parts: ModelParts, states: torch.Tensor, ids_of_words: Sequence[Sequence[int]], top_k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Top words and chosen words of `states` (L + 1, N, D)."""
    depth, count = states.shape[:2]
    top_ids = np.zeros((depth, count, top_k), dtype=np.int64)
    top_probabilities = np.zeros((depth, count, top_k), dtype=np.float32)
    word_probabilities = np.zeros((depth, count, len(ids_of_words)), dtype=np.float32)
    for layer in range(depth):
        for start in range(0, count, _CHUNK):
            some = slice(start, min(start + _CHUNK, count))
            logits = parts.head(parts.final_norm(states[layer, some]))  # (n, V)
            probabilities = logits.float().softmax(-1)  # (n, V)
            best = probabilities.topk(top_k, dim=-1)
            top_ids[layer, some] = best.indices.cpu().numpy()
            top_probabilities[layer, some] = best.values.cpu().numpy()
            for place, ids in enumerate(ids_of_words):
                word_probabilities[layer, some, place] = probabilities[:, list(ids)].sum(-1).cpu().numpy()
    return top_ids, top_probabilities, word_probabilities
