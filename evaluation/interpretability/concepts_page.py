"""Concepts as one HTML page: the words of each, and the patches in which it is strongest."""

from typing import Any

import numpy as np

from .concepts import Concepts, PatchStates
from .html_pages import encoded, rendered, visible

_IMAGES, _PATCHES, _LONGEST = 4, 8, 220


def concepts_page(title: str, found: PatchStates, concepts: Concepts, rows: list[dict[str, Any]]) -> str:
    """
    The page, which loads nothing.

    Args:
        rows: of each concept `words`, and what else is told of it.
    """
    encodings: dict[int, str] = {}
    cards = []
    for number, row in enumerate(rows):
        code = concepts.codes[:, number]  # (N,)
        strongest = [int(code[found.sample == some].max() * 1e6) for some in range(len(found.images))]
        shown = []
        for some in np.argsort(strongest)[::-1][:_IMAGES]:
            image = found.images[some]
            encodings.setdefault(int(some), encoded(image, _LONGEST))
            own = np.flatnonzero(found.sample == some)
            best = own[np.argsort(-code[own], kind="stable")[:_PATCHES]]
            scale = np.array([image.width, image.height] * 2) / 100
            boxes = [
                {"box": np.round(found.boxes[place] / scale, 3).tolist(), "share": float(code[place] / code.max())}
                for place in best
                if code[place] > 0
            ]
            shown.append({"image": encodings[int(some)], "ratio": image.height / image.width, "boxes": boxes})
        cards.append({**row, "words": [visible(word) for word in row["words"]], "images": shown})
    error = round(100 * concepts.error)
    return rendered("concepts.html.jinja", title=title, depth=found.depth, error=error, concepts=cards)
