import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from poise.processing.image_loading import flat_image_list, image_size, open_image


def png_that_claims(width, height):
    """A few bytes that say they are a picture of any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    (tmp_path / "good.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "truncated.jpg").write_bytes(buffer.getvalue()[:1500])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "words.jpg").write_text("not an image")
    (tmp_path / "bomb.png").write_bytes(png_that_claims(10_000, 10_000))
    (tmp_path / "huge_bomb.png").write_bytes(png_that_claims(100_000, 100_000))
    (tmp_path / "flat.png").write_bytes(png_that_claims(0, 10))
    return tmp_path


def test_a_good_image(folder):
    image = open_image(folder / "good.jpg")
    assert image.size == (80, 60) and image.mode == "RGB"
    assert image_size(folder / "good.jpg") == (80, 60)
    assert open_image(Image.new("L", (3, 2))).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("missing.jpg", FileNotFoundError, "no such file"),
        ("truncated.jpg", ValueError, "truncated or damaged"),
        ("empty.jpg", ValueError, "empty file"),
        ("words.jpg", ValueError, "not an image in a known format"),
        ("bomb.png", ValueError, "10000×10000 = 100 megapixels, more than max_pixels=50 megapixels"),
        ("huge_bomb.png", ValueError, "too large"),
        ("flat.png", ValueError, "0×10|not an image in a known format"),
    ],
)
def test_bad_images_end_in_one_line_with_their_name(folder, name, error, words, recwarn):
    with pytest.raises(error, match=words) as caught:
        open_image(folder / name, argument="images[3]")
    message = str(caught.value)
    assert message.startswith("images[3]=") and name in message and "\n" not in message
    assert not recwarn.list


def test_the_limit_can_be_moved_and_is_checked_before_decoding(folder):
    with pytest.raises(ValueError, match="more than max_pixels"):
        open_image(folder / "good.jpg", max_pixels=4799)
    with pytest.raises(ValueError, match="truncated or damaged"):  # allowed now, but there is nothing in it
        open_image(folder / "bomb.png", max_pixels=100_000_000)
    with pytest.raises(ValueError, match="0×5 pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_the_camera_orientation_is_obeyed_unless_boxes_forbid_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 40)
    assert open_image(tmp_path / "turned.jpg", turn_upright=False).size == (40, 20)


def test_lists_of_images_become_flat(folder):
    def fetch(address):
        return f"fetched {address}"

    image = Image.new("RGB", (4, 4))
    nested = [[image, str(folder / "good.jpg")], [], None, [np.zeros((3, 4, 4))]]
    assert [type(entry).__name__ for entry in flat_image_list(nested, fetch)] == ["Image", "Image", "ndarray"]
    assert len(flat_image_list(np.zeros((5, 3, 4, 4)), fetch)) == 5
    assert flat_image_list(None, fetch) == []
    assert flat_image_list("https://example.org/a.png", fetch) == ["fetched https://example.org/a.png"]
    with pytest.raises(TypeError, match=r"images\[1\] is a int"):
        flat_image_list([image, 7], fetch)
    with pytest.raises(ValueError, match=r"images\[0\] has the shape \(0, 4, 3\)"):
        flat_image_list(np.zeros((0, 4, 3)), fetch)
    with pytest.raises(FileNotFoundError, match=r"images\[0\]='nothing.jpg'"):
        flat_image_list("nothing.jpg", fetch)
