"""Where a pixel of the stored image lies in the image that the vision tower sees: what resizing, cropping and
padding of an image processor do to coordinates.

The map is worked out from the processor's settings and then checked against the processor itself: an image whose
pixels spell their own coordinates is pushed through it. A processor that does something else is refused, not misread.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width

NEAREST = 0  # PIL's number of the resampling that copies pixels instead of mixing them


@dataclass(frozen=True)
class ImageGeometry:
    """`x_seen = x_stored * scale + offset`, in pixels, along x and y.

    Args:
        stored (`tuple[int, int]`): (width, height) of the stored image.
        seen (`tuple[int, int]`): (width, height) of the image that the vision tower sees.
        resized (`tuple[float, float]`): the size that the whole stored image has there; scale = resized / stored.
        offset (`tuple[float, float]`): where the stored image's top left corner lies in the seen one.
    """

    stored: tuple[int, int]
    seen: tuple[int, int]
    resized: tuple[float, float]
    offset: tuple[float, float]

    def seen_corners(self, box: Any) -> tuple[float, float, float, float]:
        """[x, y, w, h] in the stored image → (x1, y1, x2, y2) in the seen one; may reach outside of it."""
        x, y, w, h = box
        left, right = (edge * self.resized[0] / self.stored[0] + self.offset[0] for edge in (x, x + w))
        top, bottom = (edge * self.resized[1] / self.stored[1] + self.offset[1] for edge in (y, y + h))
        return left, top, right, bottom

    def seen_region(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) of all that the tower sees, in the stored image; beyond its edges where it is padded."""
        left, top = (-self.offset[axis] * self.stored[axis] / self.resized[axis] for axis in (0, 1))
        right, bottom = (
            (self.seen[axis] - self.offset[axis]) * self.stored[axis] / self.resized[axis] for axis in (0, 1)
        )
        return left, top, right, bottom

    def stored_centres(self, axis: int) -> np.ndarray:
        """Where the centres of the seen image's columns (axis 0) or rows (axis 1) lie in the stored one."""
        centres = np.arange(self.seen[axis]) + 0.5 - self.offset[axis]
        return centres * (self.stored[axis] / self.resized[axis])

    def stored_indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Column and row of the stored image at each pixel's centre of the seen one, (H, W) each; -1 on padding."""
        columns, rows = (np.floor(self.stored_centres(axis)).astype(int) for axis in (0, 1))  # (W,), (H,)
        inside = np.outer((rows >= 0) & (rows < self.stored[1]), (columns >= 0) & (columns < self.stored[0]))  # (H, W)
        return np.where(inside, columns[None, :], -1), np.where(inside, rows[:, None], -1)


def image_geometry(image_processor: Any, width: int, height: int) -> ImageGeometry:
    """How `image_processor` maps an image of `width` × `height` pixels.

    Raises:
        ValueError: it maps images in a way that is not known here (tiles, batches padded to a common size).
    """
    geometry = _geometry_from_settings(image_processor, width, height)
    for axis, expected in enumerate(geometry.stored_indices()):
        found = measured_indices(image_processor, width, height, axis)  # (seen height, seen width)
        # A centre that falls exactly between two pixels may be rounded either way.
        if found.shape != expected.shape or np.abs(found - expected).max() > 1:
            raise ValueError(
                f"image_processor={type(image_processor).__name__} does not map {width}×{height} pixels by "
                "resizing, cropping and padding as its settings say: boxes cannot be matched; use one that does."
            )
    return geometry


def _geometry_from_settings(image_processor: Any, width: int, height: int) -> ImageGeometry:
    stored = (width, height)
    canvas, origin = stored, (0, 0)
    pads_to_square = bool(image_processor.do_pad) and hasattr(
        image_processor, "pad_to_square"
    )  # LLaVA, before resizing
    if pads_to_square:
        side = max(stored)
        canvas, origin = (side, side), ((side - width) // 2, (side - height) // 2)
    seen = _resized(image_processor.size, *canvas) if image_processor.do_resize else canvas
    scale = [seen[axis] / canvas[axis] for axis in (0, 1)]
    resized = (width * scale[0], height * scale[1]) if pads_to_square else seen
    offset = [origin[0] * scale[0], origin[1] * scale[1]]
    if getattr(image_processor, "do_center_crop", False):
        crop = (image_processor.crop_size.width, image_processor.crop_size.height)
        for axis in (0, 1):
            offset[axis] += _crop_offset(seen[axis] - crop[axis], getattr(image_processor, "backend", "pil"))
        seen = crop
    pad_size = getattr(image_processor, "pad_size", None)
    if image_processor.do_pad and not pads_to_square and pad_size:
        seen = (pad_size.width, pad_size.height)  # on the right and below
    return ImageGeometry(stored, seen, resized, (offset[0], offset[1]))


def _resized(size: Any, width: int, height: int) -> tuple[int, int]:
    """(width, height) after resizing, by the rules of transformers."""
    if size.shortest_edge and size.longest_edge:
        new = get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        image = np.broadcast_to(np.uint8(0), (3, height, width))
        new = get_resize_output_image_size(image, size.shortest_edge, False, input_data_format="channels_first")
    elif size.max_height and size.max_width:
        new = get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    elif size.height and size.width:
        new = (size.height, size.width)
    else:
        raise ValueError(f"image_processor.size={size} is not known: box and patches cannot be matched.")
    return int(new[1]), int(new[0])


def _crop_offset(surplus: int, backend: str) -> int:
    """Shift by a centre crop that takes away `surplus` pixels, or adds them where negative."""
    if surplus < 0 and backend == "torchvision":
        return -surplus // 2
    return -(surplus // 2)


def measured_indices(image_processor: Any, width: int, height: int, axis: int) -> np.ndarray:
    """Column (axis 0) or row (axis 1) of the stored image found at each pixel of the seen one; -1 is padding."""
    numbers = np.arange(1, (width, height)[axis] + 1)
    numbers = np.broadcast_to(numbers[None, :] if axis == 0 else numbers[:, None], (height, width))
    spelled = np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)  # (H, W, 3)
    processed = image_processor(
        [Image.fromarray(spelled)],
        resample=NEAREST,
        do_normalize=False,
        do_rescale=False,
        image_mean=[0.0, 0.0, 0.0],  # LLaVA pads with it
        return_tensors="np",
    )
    pixels = np.asarray(processed["pixel_values"])
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        raise ValueError(
            f"image_processor={type(image_processor).__name__} makes pixel_values of shape {pixels.shape} from one "
            "image: box and patches can be matched only where one image stays one image."
        )
    digits = np.rint(pixels[0]).astype(int)  # (3, H', W')
    return digits[0] + (digits[1] << 8) + (digits[2] << 16) - 1
