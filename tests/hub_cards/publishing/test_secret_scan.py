"""What is searched for before an upload: every kind of secret, in every place where a file can hide one."""

import base64
import bz2
import gzip
import io
import lzma
import random
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

from poise.hub_cards.publishing import secret_scan
from poise.hub_cards.publishing.secret_scan import SecretScan, refuse_secrets

REPOSITORY = Path(__file__).resolve().parents[3]
TOKEN = "hf_" + "aB3" * 11
# None of them opens anything; they are put together here so that no scanner of this repository finds one.
SECRETS = {
    "Hugging Face": TOKEN,
    "GitHub": "ghp_" + "a1B2" * 9,
    "GitHub, fine-grained": "github_pat_" + "11ABCDEFG0" * 3 + "_" + "x" * 50,
    "AWS": "AKIA" + "ABCD2345" * 2,
    "Google": "AIza" + "SyA-1234567" * 3 + "ab",
    "Azure": "AccountKey=" + "k" * 86 + "==",
    "OpenAI": "key: sk-" + "proj-a1B2c3D4e5F6g7H8",
    "Slack": "xox" + "b-not-a-number-at-all",
    "Slack with numbers": "xox" + "b-123456789012-abcdefABCDEF",
    "password in an address": "https://user:" + "pw@example.org/data",
    "private key": "-----BEGIN " + "PRIVATE KEY-----",
    "private key of OpenSSH": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "encrypted private key": "-----BEGIN ENCRYPTED " + "PRIVATE KEY-----",
}


def zipped(content):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("notes.txt", content)
    return archive.getvalue()


def tensors(array, **metadata):
    def write(path):
        save_file({"weight": array}, path, metadata)

    return write


def in_png(path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", f"made with {TOKEN}", zip=True)
    Image.new("RGB", (4, 4)).save(path, "PNG", pnginfo=notes)


CODES = np.frombuffer(f"  {TOKEN}  ".encode(), np.uint8)
WRAPPED = base64.encodebytes(f"{'-' * 70} {TOKEN}".encode()).decode()
PLACES = {
    "UTF-8": f"token: {TOKEN}\n".encode(),
    "UTF-16": f"token: {TOKEN}\n".encode("utf-16"),
    "UTF-16, big-endian": f"token: {TOKEN}\n".encode("utf-16-be"),
    "UTF-32": f"token: {TOKEN}\n".encode("utf-32"),
    "between other bytes": b"\0\xff\x80" * 20 + TOKEN.encode() + b"\0\xff\x80" * 20,
    "base64": base64.b64encode(f"user:{TOKEN}".encode()),
    "base64 behind a word": b"word" + b"x" + base64.b64encode(f"user:{TOKEN}".encode()),
    "base64 over lines": WRAPPED.encode(),
    "base64 over lines in JSON": WRAPPED.replace("\n", "\\n").encode(),
    "base64 for addresses": base64.urlsafe_b64encode(f"{TOKEN}ÿÿÿ~~~???".encode("utf-16")),
    "gzip": gzip.compress(f"token: {TOKEN}".encode()),
    "zlib behind other bytes": b"\0\1\2" * 100 + zlib.compress(TOKEN.encode()),
    "bzip2": bz2.compress(TOKEN.encode()),
    "xz": lzma.compress(TOKEN.encode()),
    "zip": zipped(TOKEN),
    "base64 of gzip": base64.b64encode(gzip.compress(TOKEN.encode())),
    "gzip of UTF-16": gzip.compress(TOKEN.encode("utf-16")),
    "metadata of weights": tensors(np.zeros(3), note=TOKEN),
    "bytes of a tensor": tensors(CODES.copy()),
    "int32 of a tensor": tensors(CODES.astype(np.int32)),
    "int64 of a tensor": tensors(CODES.astype(np.int64)),
    "big-endian int64": CODES.astype(">i8").tobytes(),
    "compressed text of a PNG": in_png,
}


@pytest.mark.parametrize("name", SECRETS)
def test_every_kind_of_secret(tmp_path, name):
    (tmp_path / "notes.md").write_text(f"before {SECRETS[name]} behind\n")
    with pytest.raises(ValueError, match="notes.md holds a secret") as caught:
        refuse_secrets(tmp_path)
    assert SECRETS[name] not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PLACES)
def test_every_place(tmp_path, name):
    made = PLACES[name]
    made(tmp_path / "file") if callable(made) else (tmp_path / "file").write_bytes(made)
    with pytest.raises(ValueError, match="file holds a secret"):
        refuse_secrets(tmp_path)


@pytest.mark.parametrize("back", [1, 2, 20, len(TOKEN) - 1])
@pytest.mark.parametrize("kind", ["text", "bytes", "base64"])
def test_a_secret_across_a_border_of_blocks(monkeypatch, kind, back):
    monkeypatch.setattr(secret_scan, "BLOCK", 1 << 16)
    secret = TOKEN.encode() if kind != "base64" else base64.b64encode(b"key=" + TOKEN.encode())
    filler = b"\n" if kind != "bytes" else b"\0"
    for border in (1 << 16, 2 << 16):  # the second one shows that what is kept moves along
        content = bytearray(filler * (3 << 16))
        content[border - back : border - back + len(secret)] = secret
        assert SecretScan().of_stream(io.BytesIO(bytes(content))), border


def test_a_secret_in_compressed_text_behind_a_border(monkeypatch):
    monkeypatch.setattr(secret_scan, "BLOCK", 1 << 16)
    content = b"\0" * ((1 << 16) + 50_000) + gzip.compress(TOKEN.encode()) + b"\0" * (1 << 16) + TOKEN.encode()
    for end in (len(content) - len(TOKEN), len(content)):  # and reading goes on behind it
        assert SecretScan().of_stream(io.BytesIO(content[:end]))
    assert SecretScan().of_stream(io.BytesIO(content[: (1 << 16) + 50_000])) is None


def test_a_file_name(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / f"{TOKEN}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="the name of a file in .* holds a secret") as caught:
        refuse_secrets(tmp_path)
    assert TOKEN not in str(caught.value)


def test_secrets_that_are_known_by_value(tmp_path, monkeypatch):
    (tmp_path / "notes.md").write_text("of no known form: correct-horse-battery, another-horse-staple")
    refuse_secrets(tmp_path)
    monkeypatch.setenv("REGISTRY_PASSWORD", "correct-horse-battery")
    with pytest.raises(ValueError, match="access token"):
        refuse_secrets(tmp_path)
    monkeypatch.delenv("REGISTRY_PASSWORD")
    with pytest.raises(ValueError, match="access token"):
        refuse_secrets(tmp_path, "another-horse-staple")
    refuse_secrets(tmp_path, "another-hor")  # too short to be told from a word
    with pytest.raises(ValueError, match="access token"):
        refuse_secrets(tmp_path, "another-hors")


def test_what_ships_and_what_is_published_raises_no_alarm():
    scan = SecretScan()
    shipped = [
        path
        for folder in ("training/backbones", "modeling", "processing", "tests/hub/frozen_checkpoints")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    assert any(path.suffix == ".safetensors" for path in shipped) and any(path.suffix == ".json" for path in shipped)
    for path in shipped:
        with path.open("rb") as file:
            assert scan.of_stream(file) is None, path


def test_random_weights_raise_no_alarm():
    noise = random.Random(0).randbytes(8 << 20)
    assert SecretScan().of_stream(io.BytesIO(noise)) is None
    weights = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32).tobytes()
    assert SecretScan().of_stream(io.BytesIO(weights)) is None
