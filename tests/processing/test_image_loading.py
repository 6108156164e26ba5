import base64
import io
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image, ImageFile

from poise.processing import image_addresses
from poise.processing.image_loading import flat_image_list, image_size, open_image


def png_that_claims(width, height):
    """A few bytes that say they are an image of any size."""

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
    image = Image.new("RGB", (4, 4))
    nested = [[image, str(folder / "good.jpg")], [], None, [np.zeros((3, 4, 4))]]
    assert [type(entry).__name__ for entry in flat_image_list(nested)] == ["Image", "Image", "ndarray"]
    assert len(flat_image_list(np.zeros((5, 3, 4, 4)))) == 5
    assert flat_image_list(None) == []
    with pytest.raises(TypeError, match=r"images\[1\] is a int"):
        flat_image_list([image, 7])
    with pytest.raises(ValueError, match=r"images\[0\] has the shape \(0, 4, 3\)"):
        flat_image_list(np.zeros((0, 4, 3)))
    with pytest.raises(FileNotFoundError, match=r"images\[0\]='nothing.jpg'"):
        flat_image_list("nothing.jpg")


def large(width, height):
    """A PNG of so many pixels, all white and compressed well: small as a file, large when decoded."""
    rows = zlib.compressobj(9)
    row = b"\0" + b"\xff" * ((width + 7) // 8)
    packed = b"".join(rows.compress(row * 100) for _ in range(height // 100)) + rows.flush()

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def png(size=(9, 7)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def site(monkeypatch):
    """A web server on this machine, taken for a public host: paths and what they answer, (status, headers, body)."""
    pages = {}

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = pages[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            for part in body if isinstance(body, list) else [body]:
                self.wfile.write(part)
                self.wfile.flush()
                if isinstance(body, list):
                    time.sleep(0.05)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    real = image_addresses.is_public
    monkeypatch.setattr(image_addresses, "is_public", lambda ip: ip == "127.0.0.1" or real(ip))
    pages["at"] = f"http://127.0.0.1:{server.server_address[1]}"
    yield pages
    server.shutdown()
    server.server_close()


def test_every_way_in_checks_the_size_before_decoding(tmp_path, site, monkeypatch):
    content = large(13_000, 13_000)
    assert len(content) < 60_000
    (tmp_path / "bomb.png").write_bytes(content)
    site["/bomb.png"] = (200, {}, content)
    text = base64.b64encode(content).decode()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    for way in (tmp_path / "bomb.png", text, f"data:image/png;base64,{text}", f"{site['at']}/bomb.png"):
        with pytest.raises(
            ValueError, match=r"images\[0\]=.* is 13000×13000 = 169 megapixels, more than max_pixels=50"
        ):
            flat_image_list(way)


def test_base64_data_and_web_addresses(site):
    text = base64.encodebytes(png((60, 7)) + bytes(2000)).decode()  # long enough to be no file's name
    site["/a.png"] = (200, {}, png())
    site["/moved"] = (302, {"Location": "/a.png"}, b"")
    short = base64.b64encode(png()).decode()
    assert flat_image_list([text])[0].size == (60, 7)
    for way in (f"data:image/png;base64,{short}", f"{site['at']}/a.png", f"{site['at']}/moved"):
        assert flat_image_list([way])[0].size == (9, 7) and flat_image_list(way)[0].getpixel((0, 0)) == (255, 0, 0)
    for way, message in (
        ("data:image/png,%89PNG", "data: address without base64"),
        ("data:image/png;base64,####", "is no base64"),
        ("x" * 1500 + "!", "is no base64"),
        ("data:image/png;base64," + base64.b64encode(b"<html>").decode(), "give JPEG, PNG or WebP"),
    ):
        with pytest.raises(ValueError, match=rf"images\[0\].*{message}"):
            flat_image_list(way)


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:1/a.png", "http://localhost/a", "http://[::1]/a", "http://10.0.0.1/a", "http://192.168.1.1/a",
     "http://169.254.169.254/latest/meta-data", "http://0.0.0.0/a", "http://100.64.0.1/", "http://2130706433/a",
     "http://[::ffff:127.0.0.1]/a", "http://[64:ff9b::7f00:1]/a"],
)  # fmt: skip
def test_what_only_this_machine_can_reach_is_not_fetched(address):
    with pytest.raises(ValueError, match=r"images\[0\] at .* leads to an address that is not public"):
        flat_image_list(address)


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(ValueError, match=r"images\[0\] at '127.0.0.1' could not be fetched") as caught:
        flat_image_list("http://user:pw-of-mine@127.0.0.1/a")
    assert "pw-of-mine" not in str(caught.value)


def test_limits_on_fetching(site, monkeypatch):
    pages = site
    pages["/private"] = (302, {"Location": "http://10.0.0.1/a.png"}, b"")
    pages["/file"] = (302, {"Location": "file:///etc/hostname"}, b"")
    pages["/around"] = (302, {"Location": "/around"}, b"")
    pages["/gone"] = (404, {}, b"")
    pages["/large"] = (200, {}, bytes(2000))
    pages["/slow"] = (200, {}, [b"x"] * 100)
    monkeypatch.setattr(image_addresses, "MAX_BYTES", 1000)
    monkeypatch.setattr(image_addresses, "MAX_SECONDS", 0.5)
    for path, message in (
        ("/private", "not public"),
        ("/file", "status 302"),
        ("/around", "status 302"),
        ("/gone", "status 404"),
        ("/large", "more than 0 MB"),
        ("/slow", "takes longer"),
    ):
        with pytest.raises(ValueError, match=message):
            flat_image_list(pages["at"] + path)
    monkeypatch.setenv("POISE_FETCH_IMAGES", "0")
    with pytest.raises(ValueError, match="not fetched here"):
        flat_image_list(pages["at"] + "/gone")
