"""Text of others in a card: names, tags, questions, answers show as what they are, never as Markdown or HTML."""

import html
import json
import re
import unicodedata
from typing import Any
from urllib.parse import quote

_MARKDOWN = re.compile(r"([\\`*\[\]|~$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_LINKED = {"://": "&#58;//", "www.": "www&#46;", "@": "&#64;"}  # what renderers make links of unasked


class Markdown(str):
    """Text that is Markdown already; everything else that a card shows is escaped."""


def escape(value: Any) -> Markdown:
    """One line that a renderer shows as it stands. What is Markdown already stays."""
    if isinstance(value, Markdown):
        return value
    text = _MARKDOWN.sub(r"\\\1", html.escape(one_line(value), quote=False).replace('"', "&quot;"))
    for plain, shown in _LINKED.items():
        text = text.replace(plain, shown)
    text = re.sub(r"^([-+=>]|\d+[.)])(?=\s|$|[-+=>])", r"&#8203;\1", text)  # a list, quotation or heading
    return Markdown(text)


def code(value: Any) -> Markdown:
    """The same between backticks, where Markdown means nothing."""
    text = one_line(value).replace("`", "'").replace("|", "¦")
    return Markdown(f"`{text}`" if text else "")


def python(value: Any) -> Markdown:
    """A string, number or list as Python code; what a renderer of code blocks cannot mistake for their end."""
    return Markdown(one_line(json.dumps(value, ensure_ascii=False)))


def path(value: Any) -> Markdown:
    """A path within the repository, for links and attributes."""
    return Markdown(quote(one_line(value)))


def one_line(value: Any) -> str:
    """Without line breaks, and without characters that show nothing or turn the direction of what follows."""
    text = " ".join(str(value).split())
    return "".join(character for character in text if unicodedata.category(character) not in ("Cc", "Cf", "Cs"))
