"""Box → patches against what the image processors really do to images."""

import random

import numpy as np
import pytest
from PIL import Image
from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor, ViTImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from poise.evaluation.data_sources import load_data_source
from poise.evaluation.interpretability.objects import patches_under
from poise.evaluation.probing.image_geometry import image_geometry, measured_indices
from poise.processing import Scenes

SIDE, GRID = 48, (6, 6)
PROCESSORS = {
    "resize": SiglipImageProcessor(size={"height": SIDE, "width": SIDE}),
    "resize and crop": CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
    "resize larger and crop": BitImageProcessor(size={"shortest_edge": 55}, crop_size={"height": SIDE, "width": SIDE}),
    "resize smaller and crop": BitImageProcessor(size={"shortest_edge": 41}, crop_size={"height": SIDE, "width": SIDE}),
    "crop alone": CLIPImageProcessor(do_resize=False, crop_size={"height": SIDE, "width": SIDE}),
    "square and resize": LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ),
    "another shape": ViTImageProcessor(size={"height": 36, "width": 60}),
}
NAMES = sorted(PROCESSORS)


class ObjectPatches:
    """Patches under boxes by the settings of one processor."""

    def __init__(self, processor, grid):
        self.processor, self.grid = processor, grid

    def geometry(self, image):
        return image_geometry(self.processor, *image.size)

    def __call__(self, image, box, buffer=0):
        return patches_under(self.geometry(image).seen_region(), self.grid, image, box, buffer)


def sizes(seed, count=5):
    generator = random.Random(seed)
    return [(generator.randint(20, 200), generator.randint(20, 200)) for _ in range(count)] + [(SIDE, SIDE), (96, 96)]


@pytest.mark.parametrize("name", NAMES)
def test_every_pixel_comes_from_where_the_geometry_says(name):
    processor = PROCESSORS[name]
    for width, height in sizes(name):
        geometry = image_geometry(processor, width, height)
        for axis, expected in enumerate(geometry.stored_indices()):
            found = measured_indices(processor, width, height, axis)
            centres = geometry.stored_centres(axis)
            between = np.abs(centres - np.rint(centres)) < 1e-3  # may be rounded to either pixel
            between = between[None, :] if axis == 0 else between[:, None]
            assert ((found == expected) | between).all(), (width, height, axis)


def brute_force(processor, width, height, box, grid):
    """Patches that hold a pixel which the processor took out of the box."""
    columns, rows = (measured_indices(processor, width, height, axis) for axis in (0, 1))  # (H, W)
    x, y, w, h = box
    inside = (columns >= x) & (columns < x + w) & (rows >= y) & (rows < y + h)  # (H, W)
    tall, wide = inside.shape[0] // grid[0], inside.shape[1] // grid[1]
    return inside.reshape(grid[0], tall, grid[1], wide).any(axis=(1, 3))


@pytest.mark.parametrize("name", NAMES)
def test_boxes_map_to_the_patches_that_their_pixels_reach(name):
    processor, generator = PROCESSORS[name], random.Random(name)
    patches = ObjectPatches(processor, GRID)
    compared = 0
    for width, height in sizes(name, 3):
        image = Image.new("RGB", (width, height))
        geometry = patches.geometry(image)
        for _ in range(12):
            w, h = generator.randint(1, width), generator.randint(1, height)
            box = [generator.randint(0, width - w), generator.randint(0, height - h), w, h]
            expected = brute_force(processor, width, height, box, GRID)
            found = patches(image, box)
            assert not (expected & ~found).any(), (box, width, height)
            # A pixel shows only what lies at its centre: a sliver thinner than one pixel may be missing from it.
            left, top, right, bottom = geometry.seen_corners(box)
            for row, column in zip(*np.nonzero(found & ~expected), strict=True):
                tall, wide = geometry.seen[1] / GRID[0], geometry.seen[0] / GRID[1]
                overlap_x = min(right, (column + 1) * wide) - max(left, column * wide)
                overlap_y = min(bottom, (row + 1) * tall) - max(top, row * tall)
                assert 0 < min(overlap_x, overlap_y) < 1, (box, width, height, row, column)
            compared += 1
    assert compared == 60


def test_scenes_boxes_by_arithmetic():
    patches = ObjectPatches(PROCESSORS["resize"], GRID)
    for record in Scenes("test", size=20):
        for item in record["metadata"]["objects"]:
            x, y, w, h = item["bbox"]
            expected = np.zeros(GRID, dtype=bool)
            expected[y // 8 : (y + h - 1) // 8 + 1, x // 8 : (x + w - 1) // 8 + 1] = True
            assert np.array_equal(patches(record["image"], item["bbox"]), expected)


def test_boxes_of_photos(shared_folder):
    records = load_data_source(str(shared_folder / "data"))
    processor = CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    patches = ObjectPatches(processor, (6, 6))
    boxed = [index for index, record in enumerate(records.records) if "bbox" in record][:40]
    assert len(boxed) == 40
    for index in boxed[::4]:
        image, box = records[index]["image"], records[index]["bbox"]
        expected, found = brute_force(processor, *image.size, box, (6, 6)), patches(image, box)
        assert not (expected & ~found).any()
        assert (found & ~expected).sum() <= 12  # at most slivers around


@pytest.mark.parametrize("buffer", [0, 1, 2, 9])
def test_buffer_is_a_widening_by_whole_patches(buffer):
    patches, image = ObjectPatches(PROCESSORS["resize"], GRID), Image.new("RGB", (SIDE, SIDE))
    bare, widened = patches(image, [33, 9, 6, 6]), patches(image, [33, 9, 6, 6], buffer)
    rows, columns = np.nonzero(bare)
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            distance = np.maximum(np.abs(rows - row), np.abs(columns - column)).min()
            assert widened[row, column] == (distance <= buffer)


def test_touching_an_edge_is_no_overlap():
    patches, image = ObjectPatches(PROCESSORS["resize"], GRID), Image.new("RGB", (SIDE, SIDE))
    assert np.argwhere(patches(image, [16, 8, 8, 8])).tolist() == [[1, 2]]
    assert np.argwhere(patches(image, [15.9, 8, 8, 8])).tolist() == [[1, 1], [1, 2]]


def test_a_box_that_is_cropped_away_has_no_patch():
    patches, image = ObjectPatches(PROCESSORS["resize and crop"], GRID), Image.new("RGB", (200, 100))
    assert not patches(image, [0, 0, 10, 10]).any() and patches(image, [45, 0, 10, 10]).any()


@pytest.mark.parametrize(("box", "buffer", "text"), [([40, 0, 20, 5], 0, "box"), ([0, 0, 5, 5], -1, "buffer=-1")])
def test_bad_boxes(box, buffer, text):
    with pytest.raises(ValueError, match=text):
        ObjectPatches(PROCESSORS["resize"], GRID)(Image.new("RGB", (SIDE, SIDE)), box, buffer)


def test_a_processor_that_does_something_else_is_refused():
    class Mirroring(SiglipImageProcessor):
        def _preprocess(self, images, *args, **kwargs):
            return super()._preprocess([image[:, :, ::-1].copy() for image in images], *args, **kwargs)

    with pytest.raises(ValueError, match="Mirroring does not map 40×30 pixels by resizing"):
        image_geometry(Mirroring(size={"height": SIDE, "width": SIDE}), 40, 30)
