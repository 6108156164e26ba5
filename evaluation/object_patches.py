"""Box → patches: which image tokens cover an object, after everything that the image processor does to the picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from poise.evaluation.picture_geometry import PictureGeometry, picture_geometry
from poise.processing.grounding_text import check_box

# Rounding of floating point numbers is not an overlap. In pixels.
SMALLEST_OVERLAP = 1e-6


class NoPatchError(ValueError):
    """A box that maps to no patch."""


class ObjectPatches:
    """The patches under a box; a patch counts if any part of the box lies on it.

    Args:
        image_processor: the model's.
        grid (`tuple[int, int]`): rows and columns of patches.
    """

    def __init__(self, image_processor: Any, grid: tuple[int, int]):
        self.image_processor, self.grid = image_processor, grid
        self._geometries: dict[tuple[int, int], PictureGeometry] = {}

    def geometry(self, image: Image.Image) -> PictureGeometry:
        """How the processor maps this picture; worked out once for every size."""
        if image.size not in self._geometries:
            self._geometries[image.size] = picture_geometry(self.image_processor, *image.size)
        return self._geometries[image.size]

    def seen_picture(self, image: Image.Image) -> Image.Image:
        """The part of the stored picture that the model sees, in its own resolution; black where it was padded."""
        return image.convert("RGB").crop(tuple(round(edge) for edge in self.geometry(image).seen_region()))

    def __call__(self, image: Image.Image, box: Sequence[float], buffer: int = 0) -> np.ndarray:
        """
        Args:
            image: the stored picture.
            box: [x, y, w, h] in its pixels.
            buffer (`int`, *optional*, defaults to 0): how many patches around are added, corners included (the vision
                tower mixes an object into its neighbourhood; Neo et al., arXiv 2410.07149, take 1 or 2).

        Returns:
            `np.ndarray` (rows, columns) of bool.

        Raises:
            NoPatchError: the box lies in a part that the processor crops away.
            ValueError: the box is not inside the picture, or the buffer is negative.
        """
        if buffer < 0:
            raise ValueError(f"buffer={buffer} must be 0 or more patches.")
        check_box(box, *image.size)
        geometry = self.geometry(image)
        left, top, right, bottom = geometry.seen_corners(box)
        rows = _touched(top, bottom, geometry.seen[1] / self.grid[0], self.grid[0])  # (rows,)
        columns = _touched(left, right, geometry.seen[0] / self.grid[1], self.grid[1])  # (columns,)
        if not (rows.any() and columns.any()):
            x1, y1, x2, y2 = (round(edge, 1) for edge in geometry.seen_region())
            raise NoPatchError(
                f"bbox={list(box)} maps to no patch: of the {image.width}×{image.height} picture the model sees only "
                f"x {x1}–{x2}, y {y1}–{y2}; leave this object out, or use an image processor that does not crop."
            )
        return np.outer(_widened(rows, buffer), _widened(columns, buffer))


def _touched(start: float, stop: float, side: float, count: int) -> np.ndarray:
    """Which of `count` intervals of length `side` overlap [start, stop]."""
    edges = np.arange(count + 1) * side
    overlap = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    return overlap > SMALLEST_OVERLAP


def _widened(touched: np.ndarray, buffer: int) -> np.ndarray:
    near = np.flatnonzero(touched)
    widened = np.zeros_like(touched)
    widened[max(near.min() - buffer, 0) : near.max() + buffer + 1] = True
    return widened


def patches_or_none(patches: ObjectPatches, image: Image.Image, box: Sequence[float]) -> np.ndarray | None:
    """As calling `patches`, but `None` for a box that maps to no patch: for data sets, where some always do."""
    try:
        return patches(image, box)
    except NoPatchError:
        return None
