"""The logit lens as one HTML page: point at a patch and read what it says layer by layer.

Image, numbers, style and script are inside, and its policy forbids it to load anything. Words of the vocabulary are
arbitrary text: the script only ever sets them as text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .html_pages import data_address, rendered, visible
from .logit_lens import LogitLens

# Probabilities are written as whole numbers of these parts. Heat is shown as colour, relative to its highest value.
_SCALE, _HEAT_SCALE = 10_000, 1_000_000


def logit_lens_page(lenses: Sequence[LogitLens], title: str = "Logit lens over visual tokens") -> str:
    """
    The page as text.

    Args:
        lenses: one or more images, all read with the same `top_k`; a menu switches between them.
        title (`str`, *optional*): the headline.

    Raises:
        ValueError: no image, or images with different numbers of top words.
    """
    ranks = {lens.top_ids.shape[2] for lens in lenses}
    if len(ranks) != 1:
        raise ValueError(
            f"lenses holds {len(lenses)} images with {sorted(ranks)} top words: give some, all with one top_k."
        )
    ids = sorted({token for lens in lenses for token in lens.vocabulary})
    place = {token: number for number, token in enumerate(ids)}
    names = {token: name for lens in lenses for token, name in lens.vocabulary.items()}
    data = {
        "top_k": ranks.pop(),
        "scale": _SCALE,
        "heat_scale": _HEAT_SCALE,
        "vocabulary": [visible(names[token]) for token in ids],
        "samples": [_sample(lens, place) for lens in lenses],
    }
    return rendered("logit_lens.html.jinja", data, title=title)


def _sample(lens: LogitLens, place: dict[int, int]) -> dict[str, Any]:
    numbers = np.vectorize(place.__getitem__, otypes=[int])(lens.top_ids)
    return {
        "title": lens.title,
        "question": lens.question,
        "image": data_address(lens.image),
        "width": lens.image.width,
        "grid": list(lens.grid),
        "prefix": lens.num_prefix,
        "tokens": lens.top_ids.shape[1],
        "depth": lens.top_ids.shape[0],
        "top": numbers.ravel().tolist(),
        "share": np.rint(lens.top_probabilities * _SCALE).astype(int).ravel().tolist(),
        "words": lens.words,
        "heat": np.rint(lens.word_probabilities * _HEAT_SCALE).astype(int).ravel().tolist(),
        "object": [] if lens.object_patches is None else np.flatnonzero(lens.object_patches).tolist(),
        "reads_encoder": lens.reads_encoder,
    }
