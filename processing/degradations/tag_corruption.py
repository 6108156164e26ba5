"""Corruptions of an image's tags, severity 1–5: what a tagger does wrong.

Each function takes (tags, severity, rng, prior_tags) and returns a new list of [name, score] pairs, best score first.
`prior_tags` are the names that the prior would invent for this image, the most plausible first. The random numbers do
not depend on the severity, so a stronger severity loses or invents what a weaker one did, and more.
"""

from collections.abc import Callable, Sequence

import numpy as np

Tags = list[list]


def _false_names(tags: Tags, prior_tags: Sequence[str] | None) -> list[str]:
    """Names the prior offers that are not among the tags yet."""
    said = {name for name, _ in tags}
    names = [name for name in prior_tags or () if name not in said]
    if not names:
        raise ValueError(
            f"prior_tags={prior_tags!r} has no name that is not a tag already, but 'tags_invented' needs one: pass "
            "prior_tags=[names that are plausible here and false]"
        )
    return names


def _tags_dropped(tags: Tags, severity: int, rng: np.random.Generator, prior_tags: Sequence[str] | None) -> Tags:
    """Each tag is lost with the same probability."""
    rate = (0.15, 0.3, 0.5, 0.7, 0.9)[severity - 1]
    kept = rng.random(len(tags)) >= rate
    return [tag for tag, keep in zip(tags, kept, strict=True) if keep]


def _tags_invented(tags: Tags, severity: int, rng: np.random.Generator, prior_tags: Sequence[str] | None) -> Tags:
    """One to three false tags after the prior join the true ones, with scores around .4 up to .9."""
    count, level = (1, 1, 2, 2, 3)[severity - 1], (0.4, 0.55, 0.65, 0.8, 0.9)[severity - 1]
    spread = rng.uniform(-0.08, 0.08, 3)
    names = _false_names(tags, prior_tags)[:count]
    return tags + [[name, round(level + float(off), 2)] for name, off in zip(names, spread[: len(names)], strict=True)]


def _tags_shuffled(tags: Tags, severity: int, rng: np.random.Generator, prior_tags: Sequence[str] | None) -> Tags:
    """Scores move towards those of other tags of the image, wholly at severity 5. A single tag keeps its score."""
    scores = np.array([score for _, score in tags], dtype=np.float64)
    # A rotation of a random order leaves no tag its own score, which a plain permutation of two tags would half the
    # time.
    order = rng.permutation(len(tags))
    others = np.empty_like(scores)
    others[order] = scores[np.roll(order, 1)]
    mixed = scores + severity / 5 * (others - scores)
    return [[name, round(float(score), 2)] for (name, _), score in zip(tags, mixed, strict=True)]


def _tags_removed(tags: Tags, severity: int, rng: np.random.Generator, prior_tags: Sequence[str] | None) -> Tags:
    """All tags of an image are gone, for a share severity/5 of the samples."""
    return [] if rng.random() < severity / 5 else list(tags)


def _tags_adversarial(tags: Tags, severity: int, rng: np.random.Generator, prior_tags: Sequence[str] | None) -> Tags:
    """One false tag, the first of `prior_tags`, stands in place of all; its score rises with the severity."""
    if not prior_tags:
        raise ValueError(
            "prior_tags is empty, but 'tags_adversarial' needs one: pass prior_tags=[a name that is false here]"
        )
    name = prior_tags[0]
    return [[name, (0.5, 0.65, 0.8, 0.9, 0.99)[severity - 1]]]


TAG_CORRUPTIONS: dict[str, Callable[[Tags, int, np.random.Generator, Sequence[str] | None], Tags]] = {
    "tags_dropped": _tags_dropped,
    "tags_invented": _tags_invented,
    "tags_shuffled": _tags_shuffled,
    "tags_removed": _tags_removed,
    "tags_adversarial": _tags_adversarial,
}
