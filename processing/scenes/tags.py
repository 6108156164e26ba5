"""Tags with scores as a tagger would give them: true ones mostly high, invented ones mostly low and after the prior."""

from functools import lru_cache

import numpy as np

from ..degradations.stateless_random import random_uniforms, stable_hash
from .layout import COLORS, MAX_OBJECTS, PRIOR_COLOR_IDS, SHAPES, SceneLayout

INVENTION_SLOTS = 2


@lru_cache(maxsize=16)
def _beta_quantiles(a: float, b: float) -> np.ndarray:
    """Inverse distribution function of Beta(a, b) at 1,025 even steps, by summing its density."""
    x = (np.arange(8192) + 0.5) / 8192
    density = x ** (a - 1) * (1 - x) ** (b - 1)
    mass = np.cumsum(density)
    return np.interp(np.linspace(0, 1, 1025), mass / mass[-1], x)


def beta_from_uniform(u: np.ndarray, a: float, b: float) -> np.ndarray:
    """Beta(a, b) numbers from uniform ones, elementwise."""
    return np.interp(u, np.linspace(0, 1, 1025), _beta_quantiles(a, b))


def draw_tags(key: int, layout: SceneLayout, miss_rate: float, invention_rate: float, sharpness: float) -> dict:
    """Tags of the scenes of a layout.

    An object's tag is missed with probability `miss_rate`. Each of two slots invents a tag with probability
    `invention_rate`: a shape, one of the scene's own in half of the cases, in the prior colour of that shape; a slot
    whose tag happens to be true says nothing. Scores are Beta(2 + 6s, 2) for true tags and Beta(2, 2 + 4s) for invented
    ones with s = `sharpness`: Beta(8, 2) and Beta(2, 6) at 1, the same law for both at 0.

    Returns:
        dict of arrays over 4 + 2 slots: `color`, `shape` int64 `(B, 6)` (-1 where there is no tag), `score` float64
        `(B, 6)` in [0.01, 0.99], two decimals, `invented` bool `(B, 6)`. One slot a tag name.
    """
    size = len(layout.indices)
    u = random_uniforms(stable_hash(key, "tags"), layout.indices, 2 * MAX_OBJECTS + 4 * INVENTION_SLOTS)
    pair = np.where(layout.shape < 0, -1, layout.shape * len(COLORS) + layout.color)  # (B, 4)
    said = (pair >= 0) & (u[:, :MAX_OBJECTS] >= miss_rate)
    for slot in range(1, MAX_OBJECTS):  # two objects alike share the first one's tag
        said[:, slot] &= (pair[:, slot : slot + 1] != pair[:, :slot]).all(axis=1)
    true_score = beta_from_uniform(u[:, MAX_OBJECTS : 2 * MAX_OBJECTS], 2 + 6 * sharpness, 2.0)

    v = u[:, 2 * MAX_OBJECTS :].reshape(size, INVENTION_SLOTS, 4)  # (B, 2, 4)
    own = (v[..., 1] * 2 * layout.num_objects[:, None]).astype(np.int64)  # below num_objects: that object's shape
    is_own = own < layout.num_objects[:, None]
    own_shape = np.take_along_axis(layout.shape, np.minimum(own, MAX_OBJECTS - 1), axis=1)
    shape = np.where(is_own, own_shape, (v[..., 2] * len(SHAPES)).astype(np.int64))  # (B, 2)
    color = PRIOR_COLOR_IDS[shape]
    invented = (v[..., 0] < invention_rate) & ((shape * len(COLORS) + color)[..., None] != pair[:, None]).all(axis=2)
    invented[:, 1] &= ~(invented[:, 0] & (shape[:, 0] == shape[:, 1]))
    false_score = beta_from_uniform(v[..., 3], 2.0, 2 + 4 * sharpness)

    keep = np.concatenate([said, invented], axis=1)  # (B, 6)
    return {
        "shape": np.where(keep, np.concatenate([layout.shape, shape], axis=1), -1),
        "color": np.where(keep, np.concatenate([layout.color, color], axis=1), -1),
        "score": np.where(keep, np.clip(np.concatenate([true_score, false_score], axis=1).round(2), 0.01, 0.99), 0.0),
        "invented": np.concatenate([np.zeros_like(said), invented], axis=1),
    }
