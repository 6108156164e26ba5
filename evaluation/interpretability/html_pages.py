"""What the HTML pages of this package share: each loads nothing, and takes arbitrary text as data only."""

import base64
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image


def rendered(template: str, data: Any = None, **values: Any) -> str:
    """A page of this folder's `template`; `data` reaches its script as JSON, `values` are escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    # Inside a script element only `<` could end it or open a comment.
    numbers = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template(template).render(data=numbers, **values)


def encoded(image: Image.Image, longest: int) -> str:
    """An image as a data address, at most `longest` pixels long; a small one without loss."""
    scale = min(1.0, longest / max(image.size))
    if scale < 1.0:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    kind, options = ("PNG", {}) if max(image.size) <= 200 else ("JPEG", {"quality": 88})
    return data_address(image, kind, **options)


def data_address(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """An image as `data:image/...;base64,...`."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def visible(token: str) -> str:
    """A token's text with what cannot be seen made visible; the space that words begin with is left out."""
    text = token.strip(" ") or token.replace(" ", "␣")
    marks = {"\n": "⏎", "\t": "⇥", "\r": "␍", "": "∅"}
    if text in marks:
        return marks[text]
    return "".join(marks.get(c, c if c.isprintable() else f"<{ord(c):02x}>") for c in text)
