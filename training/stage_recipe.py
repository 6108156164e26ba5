"""Recipes of the smaller stages: sections of a YAML file with defaults, overridden from a command line and checked.

The recipe of supervised fine-tuning has a class of its own (`recipe`); here are the parts that every stage shares.
"""

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from poise.training.recipe import recipe_path

Sections = dict[str, dict[str, Any]]


def unknown_name(what: str, name: str, known: Sequence[str]) -> ValueError:
    """The error for a name that is not among `known`, with the nearest one."""
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(known)[:12])}"
    return ValueError(f"{what} {name!r} is not known: {hint}")


def read_sections(
    name: str | None,
    overrides: Mapping[str, Any] | None,
    fields: Mapping[str, Sequence[str]],
    defaults: Mapping[str, Mapping[str, Any]],
) -> Sections:
    """
    The sections of a recipe file over the defaults, with overrides over both.

    Args:
        name (`str`, *optional*): file, or name of a shipped recipe.
        overrides (*optional*): `{"triplet.margin": 0.5, "max_steps": 10}`; a bare key must stand in one section only.
        fields: the keys that each section knows.
        defaults: their values; `learning_rates` is replaced as a whole, since naming one rate chooses the groups.

    Raises:
        ValueError: unknown recipe, section or key (with the nearest known one), or a file that is no such recipe.
    """
    sections: Sections = {section: dict(defaults.get(section, {})) for section in fields}
    for section, content in _written(name, fields).items():
        if section not in fields:
            raise unknown_name(f"recipe {name}: section", section, list(fields))
        if not isinstance(content or {}, Mapping):
            raise ValueError(f"recipe {name}: section {section!r} holds {content!r}: write keys below it")
        for key in content or {}:
            if key not in fields[section]:
                raise unknown_name(f"recipe {name}: key of section {section!r}:", key, fields[section])
        sections[section] = {**({} if section == "learning_rates" else sections[section]), **(content or {})}
    for key, value in (overrides or {}).items():
        section, field = _home(key, fields)
        sections[section][field] = value
    return sections


def _written(name: str | None, fields: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    if name is None:
        return {}
    path = recipe_path(name)
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(written, Mapping):
        raise ValueError(f"recipe {path}: expected sections {', '.join(fields)}, found {type(written).__name__}")
    return written


def _home(key: str, fields: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Section and field of an override."""
    section, dot, field = key.partition(".")
    if dot:
        if section not in fields:
            raise unknown_name("recipe section", section, list(fields))
        if field not in fields[section]:
            raise unknown_name(f"recipe key of section {section!r}:", field, fields[section])
        return section, field
    homes = [section for section in fields if key in fields[section]]
    if not homes:
        raise unknown_name("recipe key", key, [field for names in fields.values() for field in names])
    if len(homes) > 1:
        raise ValueError(
            f"recipe key {key!r} stands in several sections: write {' or '.join(f'{h}.{key}' for h in homes)}"
        )
    return homes[0], key


def check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    """Raises a `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise unknown_name(f"{key}:", value, choices)


def check_number(key: str, value: Any, low: float, high: float = float("inf"), above: bool = False) -> None:
    """Raises a `ValueError` unless `value` is a number in [low, high], or in (low, high] with `above`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or (above and value == low):
        bounds = f"above {low:g}" if above else f"at least {low:g}"
        most = "" if high == float("inf") else f" and at most {high:g}"
        raise ValueError(f"{key}={value!r} must be a number {bounds}{most} (YAML reads 1e-3 without a dot as text)")


def check_rates(rates: Mapping[str, Any]) -> None:
    """Raises a `ValueError` unless every learning rate is a number above 0 and there is one."""
    if not rates:
        raise ValueError("learning_rates is empty: nothing would be trained; name at least one group")
    for group, rate in rates.items():
        check_number(f"learning_rates.{group}", rate, 0.0, above=True)


def check_output_folder(folder: str | os.PathLike) -> None:
    """Raises a `ValueError` where the run's folder is a file."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"training.output_dir={str(folder)!r} is a file: name a folder")


def save_sections(sections: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Writes the resolved recipe as YAML."""
    plain = {section: dict(content) for section, content in sections.items()}
    Path(path).write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
