"""Which captions are an image's positive: the one nearest to their centroid, or all of them, averaged.

Dynamic LION takes the caption closest to the centroid of the image's captions; averaging them all is the other reading
of "the centroid caption" and keeps what only one annotator wrote.
"""

from collections.abc import Callable, Sequence

import numpy as np

POSITIVES = ("centroid", "mean")
# Sentences to their embeddings (M, D), of any length.
SentenceEmbedding = Callable[[Sequence[str]], np.ndarray]


def centroid_caption(embeddings: np.ndarray) -> int:
    """Row of the caption with the greatest cosine to the mean of all; of equals the first.

    embeddings (`np.ndarray` (C, D)): one row per caption of an image.
    """
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)  # (C, D)
    return int(np.argmax(rows @ rows.mean(axis=0)))


def positive_captions(captions: Sequence[Sequence[str]], kind: str, embed: SentenceEmbedding) -> list[list[str]]:
    """Per image the captions that make its positive: the centroid one, or all of them (`kind="mean"`).

    Args:
        captions: per image its captions, at least one.
        kind (`str`): one of `POSITIVES`.
        embed: sentence embeddings; called once with every caption, and only where they are needed.

    Raises:
        ValueError: an unknown kind, or an image without a caption.
    """
    if kind not in POSITIVES:
        raise ValueError(f"positive={kind!r} is not known: choose one of {', '.join(POSITIVES)}")
    for place, texts in enumerate(captions):
        if not texts:
            raise ValueError(f"captions[{place}] is empty: leave the image out")
    if kind == "mean":
        return [list(texts) for texts in captions]
    embeddings = embed([text for texts in captions for text in texts])  # (M, D)
    bounds = np.cumsum([0, *map(len, captions)])
    return [
        [texts[centroid_caption(embeddings[start:end])]]
        for texts, start, end in zip(captions, bounds[:-1], bounds[1:], strict=True)
    ]
