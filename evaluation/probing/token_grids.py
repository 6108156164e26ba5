"""Where on the image each image token lies: grids of patches, of tiles and thumbnails, in pixels of the stored image.

What is laid out how follows from the model's inputs (`image_grid_thw`, `image_sizes`, `spatial_shapes`, tiles) and from
how many tokens there are, not from the family. Where a tile lies on the stored image is measured: an image whose
colours are its coordinates goes through the image processor, and a line is fitted through what comes out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .families import QUERY_MODULES, WHOLE_IMAGE_TOKENS
from .image_geometry import image_geometry
from .prompt_batch import PromptBatch

Box = tuple[float, float, float, float]
# Rows and columns of patches before they are merged.
_GRIDS = ("image_grid_thw", "image_grid_hws", "image_grid_hw", "target_sizes")
# Which sides a grid has is told by its area and the aspect ratio of what it covers, which is rounded to whole patches.
_ASPECT_TOLERANCE = 1.5


@dataclass(frozen=True)
class TokenGrid:
    """
    One rectangle of image tokens.

    Attributes:
        tokens (R, C): number of each token among its prompt's image tokens.
        region: (x1, y1, x2, y2) that the grid covers, in pixels of the stored image; may reach beyond its edges.
    """

    tokens: np.ndarray
    region: Box

    @property
    def area(self) -> float:
        """Of the region, in pixels."""
        x1, y1, x2, y2 = self.region
        return (x2 - x1) * (y2 - y1)

    def boxes(self) -> np.ndarray:
        """(R, C, 4): x1, y1, x2, y2 of each token."""
        rows, columns = self.tokens.shape
        x = np.linspace(self.region[0], self.region[2], columns + 1)
        y = np.linspace(self.region[1], self.region[3], rows + 1)
        left, top = np.meshgrid(x[:-1], y[:-1])
        right, bottom = np.meshgrid(x[1:], y[1:])
        return np.stack([left, top, right, bottom], axis=-1)


class ImageGrids:
    """
    Grids of the one image of a prompt; several where it is cut into tiles, or shown whole and in tiles.

    Where a processor puts images is worked out once for every size.

    Args:
        image_processor: the model's.
    """

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor
        self._regions: dict[tuple[int, int], list[Box]] = {}

    def regions(self, image: Image.Image) -> list[Box]:
        """What of the stored image each array shows that the processor makes of it."""
        if image.size not in self._regions:
            found = _exact_region(self.image_processor, image) or tile_regions(self.image_processor, image)
            self._regions[image.size] = found or [(0.0, 0.0, float(image.width), float(image.height))]
        return self._regions[image.size]

    def __call__(self, prompts: PromptBatch, row: int, image: Image.Image) -> list[TokenGrid]:
        """
        Args:
            prompts: with one image each. row: which of them.
            image: the stored image.

        Raises:
            ValueError: its image tokens have no place on the image, or it is not known.
        """
        parts = prompts.parts
        parts.check_image_tokens("patch grid")
        queries = [name for module in parts.vlm.modules() if is_query_module(name := type(module).__name__)]
        # A module of such a name may only merge neighbours: where the inputs tell the grid, that counts.
        if queries and not any(prompts.inputs.get(name) is not None for name in _GRIDS):
            raise parts.cannot("patch grid", f"{queries[0]} makes its image tokens, which have no place on the image")
        count = int(prompts.image[row].sum())
        sizes = _whole_image_grids(prompts, row, count)
        if sizes is not None:
            return _laid_out(sizes, (0.0, 0.0, float(image.width), float(image.height)))
        regions = self.regions(image)
        tile = _tile_shape(prompts, count // len(regions)) if count % len(regions) == 0 else None
        if tile is None:
            raise parts.cannot("patch grid", f"{count} image tokens fit no grid that its inputs tell of")
        shape, skipped = tile
        area = shape[0] * shape[1]
        return [
            TokenGrid(np.arange(start + skipped, start + skipped + area).reshape(shape), region)
            for start, region in zip(range(0, count, area + skipped), regions, strict=True)
        ]


def token_grids(prompts: PromptBatch, row: int, image: Image.Image, image_processor: Any) -> list[TokenGrid]:
    """As [`ImageGrids`], for one image."""
    return ImageGrids(image_processor)(prompts, row, image)


def _exact_region(image_processor: Any, image: Image.Image) -> list[Box] | None:
    """What the tower sees, by the settings of a processor that makes one image of one."""
    try:
        return [image_geometry(image_processor, *image.size).seen_region()]
    except (ValueError, AttributeError, TypeError, KeyError):
        return None


def is_query_module(name: str) -> bool:
    """Whether a class of modules makes tokens that ask the whole image."""
    return any(word in name for word in QUERY_MODULES)


def grid_shape(count: int, height: float, width: float) -> tuple[int, int] | None:
    """(rows, columns) of `count` patches, the factors nearest to the aspect ratio; `None` if none is near."""
    rows = min(
        (rows for rows in range(1, count + 1) if count % rows == 0),
        key=lambda rows: abs(math.log(rows * rows * width / (count * height))),
        default=0,
    )
    if not rows:
        return None
    stretch = abs(math.log(rows * rows * width / (count * height)))
    return (rows, count // rows) if stretch <= 2 * math.log(_ASPECT_TOLERANCE) else None


def _laid_out(sizes: Sequence[tuple[int, int, int, int]], region: Box) -> list[TokenGrid]:
    """Grids from (first token, rows, columns, tokens a row takes), all over one region."""
    grids = []
    for first, rows, columns, stride in sizes:
        tokens = first + np.arange(rows)[:, None] * stride + np.arange(columns)  # (R, C)
        grids.append(TokenGrid(tokens, region))
    return grids


def _whole_image_grids(prompts: PromptBatch, row: int, count: int) -> list[tuple[int, int, int, int]] | None:
    """Grids that cover the whole image, by what the inputs say of its size; `None` where they do not."""
    inputs = prompts.inputs
    for name in _GRIDS:
        if inputs.get(name) is not None and len(inputs[name]) == len(prompts):
            *_, height, width = inputs[name][row].tolist()
            return _merged(height, width, count)
    shapes = inputs.get("spatial_shapes")
    if shapes is not None and len(shapes) == len(prompts):
        height, width = shapes[row].tolist()
        return _merged(height, width, count)
    places = inputs.get("image_position_ids")
    if places is not None and places.dim() == 3 and places.shape[-1] == 2:
        width, height = (places[row].amax(0) + 1).tolist()
        return _merged(height, width, count)
    if inputs.get("image_sizes") is not None and len(inputs["image_sizes"]) == len(prompts):
        height, width = inputs["image_sizes"][row].tolist()
        return _sized(prompts, count, height, width)
    if prompts.parts.family == "fuyu":  # a token of its own ends each row
        where = prompts.image[row].nonzero()[:, 0]
        rows = 1 + int((where.diff() > 1).sum())
        return [(0, rows, count // rows, count // rows)] if count % rows == 0 else None
    return None


def _merged(height: int, width: int, count: int) -> list[tuple[int, int, int, int]] | None:
    """Patches (height, width), squares of which were merged into one token each."""
    side = math.sqrt(height * width / count)
    rows, columns = round(height / side), round(width / side)
    return [(0, rows, columns, columns)] if rows * columns == count else None


def _sized(prompts: PromptBatch, count: int, height: int, width: int) -> list[tuple[int, int, int, int]] | None:
    """One grid in the image's own aspect, or a square one and then one in its aspect whose rows end in a newline."""
    base: Any = prompts.parts.vlm.base_model
    if not hasattr(base, "image_newline"):
        for newline in (0, 1):  # Emu3 ends each row in a token of its own
            for rows in range(1, count + 1):
                columns = count // rows - newline
                if count % rows == 0 and columns > 0 and abs(rows * width - columns * height) < max(height, width):
                    return [(0, rows, columns, columns + newline)]
        return None
    vision = prompts.parts.config.vision_config
    square = int(vision.image_size) // int(vision.patch_size)
    rest = count - square**2
    if rest == 0 or rest == 1:
        return [(0, square, square, square)]
    shapes = [(rows, rest // rows - 1) for rows in range(1, rest) if rest % rows == 0 and rest // rows > 1]
    best = min(shapes, key=lambda shape: abs(math.log(shape[0] * width / (shape[1] * height))), default=None)
    if best is None:
        return None
    rows, columns = best
    return [(0, square, square, square), (square**2, rows, columns, columns + 1)]


def _tile_shape(prompts: PromptBatch, count: int) -> tuple[tuple[int, int], int] | None:
    """(rows, columns) of one array of pixels with `count` tokens, and how many of them show all of it."""
    pixels = next((value for name in _PIXELS if (value := prompts.inputs.get(name)) is not None), None)
    if pixels is None or pixels.dim() < 4:
        return None
    height, width = pixels.shape[-2:]
    known = WHOLE_IMAGE_TOKENS.get(prompts.parts.family)
    for skipped in (0, 1) if known is None else (known,):
        shape = grid_shape(count - skipped, height, width)
        if shape is not None and abs(shape[0] * width - shape[1] * height) <= max(height, width) / min(shape):
            return shape, skipped
    return None


_PIXELS = ("pixel_values", "pixel_values_images")


def tile_regions(image_processor: Any, image: Image.Image) -> list[Box] | None:
    """
    Regions of the stored image that the arrays show which a processor makes of it; they may reach into padding.

    `None` where the processor cannot be asked.
    """
    width, height = image.size
    x = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    spelled = np.stack([x, y, np.full_like(x, 255)], axis=-1).round().astype(np.uint8)  # (H, W, 3)
    try:
        made = image_processor(
            images=[Image.fromarray(spelled)],
            do_normalize=False,
            do_rescale=False,
            image_mean=[0.0, 0.0, 0.0],  # some pad with it
            return_tensors="pt",
        )["pixel_values"]
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    tiles = torch.as_tensor(made).float()
    tiles = tiles.reshape(-1, *tiles.shape[-3:]).numpy()  # (n, 3, H', W')
    if tiles.shape[1] != 3:
        return None
    regions = []
    for tile in tiles:
        inside = tile[2] > 254  # (H', W')
        if inside.sum() < 4:
            continue  # fills up the batch
        columns, rows = inside.any(0).nonzero()[0], inside.any(1).nonzero()[0]
        left, right = _line(columns, np.median(np.where(inside, tile[0], np.nan)[rows][:, columns], axis=0))
        top, bottom = _line(rows, np.median(np.where(inside, tile[1], np.nan)[rows][:, columns], axis=1))
        seen_height, seen_width = inside.shape
        # Colour 0 is the centre of the first stored pixel, 255 that of the last.
        x1, x2 = (_at(left + right * edge, width) for edge in (-0.5, seen_width - 0.5))
        y1, y2 = (_at(top + bottom * edge, height) for edge in (-0.5, seen_height - 0.5))
        regions.append((x1, y1, x2, y2))
    return regions or None


def _at(colour: float, length: int) -> float:
    """Where along `length` pixels a colour from 0 to 255 stands."""
    return colour / 255 * (length - 1) + 0.5


def _line(places: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Offset and slope of `values` over `places`; the ends, which filters blur, count less."""
    if len(places) < 2:
        return float(values.mean()), 0.0
    some = slice(len(places) // 8, len(places) - len(places) // 8)
    slope, offset = np.polyfit(places[some], values[some], 1)
    return float(offset), float(slope)
