"""A recipe as it may be shown to everybody: without tokens, without the folders of the machine that it ran on."""

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ...training.redaction import redact
from .backbone_names import ROLES, public_name


def public_recipe(recipe: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """
    A copy in which secrets are left out, backbones from folders are `None`, and of an absolute path only the last part
    is left. It is still a recipe: with the same data in place it can be run again.
    """
    if recipe is None:
        return None
    return {section: _section(section, content) for section, content in redact(recipe).items()}


def _section(section: str, content: Any) -> Any:
    if not isinstance(content, Mapping):
        return _shown(content)
    shown = {key: _shown(value) for key, value in content.items()}
    if section == "model":
        shown.update({role: public_name(content[role]) for role in ROLES if role in content})
    return shown


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(inner) for inner in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
        return PurePath(value).name
    return value
