"""What a card may call a backbone: its Hub id, or words where it has none; never a path of the machine it came from."""

import os
from collections.abc import Mapping

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .escaping import Markdown, code

TINY = "tiny:"
ROLES = {"vision": "vision tower", "text": "language model", "tag_encoder": "tag encoder"}


def hub_id(name: str | None) -> str | None:
    """The name itself if it is one that the Hub could hold, else `None` (a shipped backbone, a folder, nothing)."""
    if not name or name.startswith((TINY, "/", ".", "~")) or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def public_name(name: str | None) -> str | None:
    """A backbone's name as a published configuration may hold it: Hub id or `tiny:NAME`; a folder has none."""
    return name if name and name.startswith(TINY) else hub_id(name)


def base_models(backbones: Mapping[str, str | None] | None) -> list[str]:
    """Hub ids of the backbones, the language model first: the first one is what the Hub shows as the origin."""
    names = [hub_id((backbones or {}).get(role)) for role in ("text", "vision", "tag_encoder")]
    return list(dict.fromkeys(name for name in names if name))


def in_words(role: str, name: str | None) -> Markdown:
    """A backbone as a reader should know it, in Markdown."""
    if name and name.startswith(TINY):
        words = f", a tiny {ROLES[role]} that ships with Poise (pretrained on drawn scenes; not on the Hub)"
        return Markdown(code(name) + words)
    if hub_id(name):
        return code(name)
    return Markdown(f"a {ROLES[role]} that is not on the Hub; its weights are in this repository")
