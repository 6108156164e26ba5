"""Recipes: YAML files that say what a run of a stage does, each field of which a command line can override.

A stage writes its recipe as a dataclass of sections, and a section as a strict dataclass of fields:

    @section
    class Triplet(Section):
        margin: float = number(1.0, above=0)
        negatives: str = choice("random", NEGATIVES)

    @dataclass
    class TagEncoderRecipe(StageRecipe):
        triplet: Triplet
        training: dict[str, Any]

    recipe = TagEncoderRecipe.load("tag_encoder", {"margin": 0.5})
    recipe.triplet.margin

Mistakes are found before anything is read, one line each that names key, value and remedy; rules across fields stand in
`__post_init__`. The resolved recipe is written beside what the run makes, so that a checkpoint always tells how it came
to be.
"""

import dataclasses
import importlib.resources
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import yaml
from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import TrainingArguments

from ..processing.scenes.scenes import Scenes
from .redaction import redact

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", list: "a list"}
_TEXT_HINT = " (YAML reads 1e-3 without a dot as text: write 1.0e-3)"
Made = typing.TypeVar("Made")
TRAINING_FIELDS = tuple(field.name for field in dataclasses.fields(TrainingArguments))
# What all stages start from. DDP need not look for parameters without a gradient: the first step finds them.
TRAINING_DEFAULTS = {"report_to": "none", "save_total_limit": 2, "lr_scheduler_type": "cosine", "seed": 42,
                     "ddp_find_unused_parameters": False}  # fmt: skip


def unknown_name(what: str, name: Any, known: Sequence[str]) -> ValueError:
    """The error for a name that is not among `known`, with the nearest one."""
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(known)[:12])}"
    return ValueError(f"{what}{name!r} is not known: {hint}")


def number(
    default: Any, *, least: float | None = None, above: float | None = None, most: float | None = None,
    below: float | None = None, hint: str = "",
) -> Any:  # fmt: skip
    """A field for a number within bounds; `hint` ends the message about one that is not."""
    bounds = [(" of at least", least), (" above", above), (" of at most", most), (" below", below)]
    words = " and".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    def check(value: Any) -> None:
        if value is not None and not (
            (least is None or value >= least) and (above is None or value > above)
            and (most is None or value <= most) and (below is None or value < below)
        ):  # fmt: skip
            raise ValueError

    return validated_field(check, default=default, metadata={"words": words, "hint": hint})


def choice(default: str | None, choices: Sequence[str]) -> Any:
    """A field for one of some names."""

    def check(value: Any) -> None:
        if value is not None and value not in choices:
            raise ValueError

    return validated_field(check, default=default, metadata={"choices": tuple(choices)})


def checked(default: Any, check: Callable[[Any], None]) -> Any:
    """A field with a check of its own, whose `ValueError` says what is wrong: "is no folder: name one"."""
    if callable(default):
        return validated_field(check, default_factory=default)
    return validated_field(check, default=default)


def floating_dtype(value: Any) -> None:
    """Check of a field that names one."""
    dtype = getattr(torch, str(value), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError("is not a torch dtype: write float32 or bfloat16")


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(number, choice, checked, dataclasses.field))
def section(cls: type[Made]) -> type[Made]:
    """The decorator of a [`Section`]: a dataclass whose fields keep to their types and bounds."""
    return strict(dataclasses.dataclass(kw_only=True, eq=False)(cls))


class Section(Mapping[str, Any]):
    """
    One section of a recipe: its keys are attributes, and items of a mapping.

    Attributes:
        PASSED_ON (`Mapping[str, Field]`): further keys, of a configuration that the section is passed on to. Written or
            not they are attributes; items are only those that were written, the configuration knows the others.
    """

    PASSED_ON: ClassVar[Mapping[str, dataclasses.Field]] = {}
    _name: str
    _passed_on: dict[str, Any]

    @classmethod
    def read(cls, name: str, content: Mapping[str, Any]) -> Self:
        """The section of that name, `content` over its defaults. Raises a `ValueError` for a value that cannot be."""
        made = cls()
        made._name, made._passed_on = name, {}
        for key, value in content.items():
            made[key] = value
        return made

    @classmethod
    def known(cls) -> tuple[str, ...]:
        return (*(field.name for field in dataclasses.fields(cls)), *cls.PASSED_ON)  # type: ignore[arg-type]

    def __setitem__(self, key: str, value: Any) -> None:
        fields = {field.name: field for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        field = fields.get(key) or self.PASSED_ON[key]
        value = _converted(value, field.type)
        if key in fields:
            try:
                setattr(self, key, value)
            except StrictDataclassFieldValidationError as error:
                raise _mistake(f"{self._name}.{key}", value, field, error.__cause__) from None
        elif value is None and type(None) not in _kinds(field.type):  # as if it had not been written
            self._passed_on.pop(key, None)
        else:
            check_kind(f"{self._name}.{key}", value, field.type)
            self._passed_on[key] = value

    def __getattr__(self, key: str) -> Any:  # of what is passed on
        if key.startswith("_") or key not in self.PASSED_ON:
            raise AttributeError(f"{type(self).__name__} has no field {key!r}")
        return self._passed_on.get(key, self.PASSED_ON[key].default)

    def __getitem__(self, key: str) -> Any:
        if key not in (*self,):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        yield from (field.name for field in dataclasses.fields(self))  # type: ignore[arg-type]
        yield from self._passed_on

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def passed_on(self) -> dict[str, Any]:
        """What was written of the configuration's fields."""
        return dict(self._passed_on)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    kinds = typing.get_args(annotation) if union else (annotation,)
    return tuple(typing.get_origin(kind) or kind for kind in kinds)


def without_slash(value: Any) -> Any:
    """A folder's name without a slash at its end, so that it is the same however it was typed; all else as it is."""
    return os.path.normpath(value) if isinstance(value, str) and value.endswith("/") and Path(value).is_dir() else value


def _converted(value: Any, annotation: Any) -> Any:
    """A value as its field wants it: whole numbers are floats, paths are names, tuples are lists."""
    kinds, value = _kinds(annotation), without_slash(value)
    if float in kinds and int not in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) and list in kinds else value


def _mistake(key: str, value: Any, field: dataclasses.Field, cause: BaseException | None) -> ValueError:
    if "choices" in field.metadata:
        return unknown_name(f"{key}=", value, field.metadata["choices"])
    if isinstance(cause, ValueError) and str(cause):
        return ValueError(f"{key}={value!r} {cause}")
    kinds = [kind for kind in _kinds(field.type) if kind is not type(None)]
    words = " or ".join(_WORDS.get(kind, str(kind)) for kind in kinds) + field.metadata.get("words", "")
    null = ", or null" if type(None) in _kinds(field.type) else ""
    hint = _TEXT_HINT if float in kinds and isinstance(value, str) else field.metadata.get("hint", "")
    return ValueError(f"{key}={value!r} must be {words}{null}{hint}")


@dataclasses.dataclass
class StageRecipe:
    """
    A recipe of a stage: its fields are sections, classes made by [`section`] or plain dictionaries.

    Attributes:
        KEYS (`Mapping`): the keys that a plain dictionary may hold, by section.
        DEFAULTS (`Mapping`): and those that it holds from the start. `learning_rates` is replaced as a whole by what a
            file says, since naming one rate chooses the groups.
    """

    KEYS: ClassVar[Mapping[str, Sequence[str]]] = {}
    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    training: dict[str, Any]

    @classmethod
    def known(cls) -> dict[str, tuple[str, ...]]:
        """Sections with their keys."""
        classes = cls._classes()
        return {name: kind.known() if kind else tuple(cls.KEYS[name]) for name, kind in classes.items()}

    @classmethod
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """Fields that take one of some words, with these."""
        sections = [kind for kind in cls._classes().values() if kind is not None]
        fields = [field for kind in sections for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        words = {field.name: field.metadata.get("choices") for field in fields}
        words.update({field.name: ("true", "false") for field in fields if field.type is bool})
        return {name: choices for name, choices in words.items() if choices}

    @classmethod
    def _classes(cls) -> dict[str, type[Section] | None]:
        hints = typing.get_type_hints(cls)
        found: dict[str, type[Section] | None] = {}
        for field in dataclasses.fields(cls):
            kinds = [kind for kind in _kinds(hints[field.name]) if isinstance(kind, type) and issubclass(kind, Section)]
            found[field.name] = kinds[0] if kinds else None
        return found

    @classmethod
    def load(cls, name: str | None = None, overrides: Mapping[str, Any] | None = None) -> Self:
        """
        The recipe of that name with `overrides` applied, checked.

        Args:
            name (`str`, *optional*): file or shipped name; without one only defaults and overrides count.
            overrides (`Mapping[str, Any]`, *optional*): `{"router_type": "gate", "training.max_steps": 10}`; a bare key
                must stand in one section only, or be written with its section.

        Raises:
            ValueError: unknown recipe, section or key (with the nearest known one), or a value that cannot be.
        """
        known = cls.known()
        contents: dict[str, Any] = {section: dict(cls.DEFAULTS.get(section, {})) for section in known}
        for section, content in _written(name, known).items():
            contents[section] = _merged(section, content, contents, known)
        for key, value in (overrides or {}).items():
            if key == "lora" and key in known and value is None:
                contents[key] = None
                continue
            section, field = _home(key, known)
            contents[section] = {**(contents[section] or {}), field: value}
        contents["learning_rates"] = {k: v for k, v in contents.get("learning_rates", {}).items() if v is not None}
        for field, value in contents["training"].items():
            if field.endswith("_strategy") and value is False:
                contents["training"][field] = "no"  # YAML reads the word no as false
        made: dict[str, Any] = {
            section: contents[section] if kind is None or contents[section] is None
            else kind.read(section, contents[section])
            for section, kind in cls._classes().items()
        }  # fmt: skip
        return cls(**made)

    @property
    def seed(self) -> int:
        return int(self.training["seed"])

    def to_dict(self) -> dict[str, Any]:
        sections = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: None if content is None else dict(content) for name, content in sections.items()}

    def save(self, path: str | os.PathLike) -> None:
        """Write the resolved recipe as YAML, without secrets."""
        Path(path).write_text(yaml.safe_dump(redact(self.to_dict()), sort_keys=False), encoding="utf-8")


def recipe_path(name: str) -> Path:
    """A recipe file: a path, or the name of a shipped one ("demo", "demo.yaml", "recipes/demo.yaml")."""
    if Path(name).is_file():
        return Path(name)
    shipped = Path(str(importlib.resources.files("poise.training"))) / "recipes"
    path = shipped / f"{Path(name).stem}.yaml"
    if path.is_file():
        return path
    raise unknown_name("recipe ", name, sorted(file.stem for file in shipped.glob("*.yaml")))


class _UniqueKeys(yaml.SafeLoader):
    """A key that stands twice is an error: YAML would keep the last value without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                problem=f"{twice!r} stands twice; keep one", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_recipe_file(path: Path, known: Sequence[str]) -> Mapping[str, Any]:
    """What a YAML file holds.

    Raises:
        ValueError: not YAML, or no mapping of the `known` names.
    """
    try:
        written = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"recipe {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(written or {}, Mapping):
        raise ValueError(f"recipe {path}: expected {', '.join(known)}, found {type(written).__name__}")
    return written or {}


def _written(name: str | None, known: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    if name is None:
        return {}
    path = recipe_path(name)
    written = read_recipe_file(path, list(known))
    for section in written:
        if section not in known:
            raise unknown_name(f"recipe {path}: section ", section, list(known))
    return written


def _merged(section: str, content: Any, contents: Mapping[str, Any], known: Mapping[str, Sequence[str]]) -> Any:
    """A section of a file over what it holds from the start."""
    if content is None:
        return None if section == "lora" else contents[section]
    if not isinstance(content, Mapping):
        raise ValueError(f"recipe section {section!r} holds {content!r}: write keys below it")
    for key in content:
        if key not in known[section]:
            raise unknown_name(f"recipe key in section {section!r}: ", key, known[section])
    return dict(content) if section == "learning_rates" else {**contents[section], **content}


def _home(key: str, known: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Section and field of an override."""
    section, dot, field = key.partition(".")
    if dot:
        if section not in known:
            raise unknown_name("recipe section ", section, list(known))
        if field not in known[section]:
            raise unknown_name(f"recipe key in section {section!r}: ", field, known[section])
        return section, field
    homes = [section for section in known if key in known[section]]
    if key in known:
        raise ValueError(f"recipe key {key!r} is a section: write --{key}.{known[key][0]} VALUE, or another key of it")
    if not homes:
        raise unknown_name("recipe key ", key, [field for names in known.values() for field in names])
    if len(homes) > 1:
        choices = " or ".join(f"{home}.{key}" for home in homes)
        raise ValueError(f"recipe key {key!r} stands in several sections: write {choices}")
    return homes[0], key


_TAKEN: dict[type, tuple[type, ...]] = {
    bool: (bool,), int: (int,), float: (int, float), str: (str, os.PathLike),
}  # fmt: skip


def check_kind(key: str, value: Any, annotation: Any) -> None:
    """Raises a `ValueError` where `annotation` asks for one plain kind of value, and `value` is of another."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    kinds = set(typing.get_args(annotation)) if is_union else {annotation}
    if value is None and type(None) in kinds:
        return
    (kind, *others) = kinds - {type(None)} or {None}
    if others or kind not in _TAKEN:
        return
    if not isinstance(value, _TAKEN[kind]) or (isinstance(value, bool) and kind is not bool):
        hint = _TEXT_HINT if kind is float else ""
        raise ValueError(f"{key}={value!r} must be {_WORDS[kind]}{hint}")


def check_scenes(settings: Any, key: str = "data.scenes", split: bool = False) -> None:
    """
    Raises a `ValueError` unless `settings` are arguments of [`Scenes`] by name, and numbers where it wants them; the
    split is among them only where `split` says so.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{key}={settings!r} must be settings of scenes, such as {{size: 2000}}")
    known = {name: p for name, p in inspect.signature(Scenes).parameters.items() if split or name != "split"}
    for name, value in settings.items():
        if name not in known:
            raise unknown_name(f"{key}: ", name, list(known))
        check_kind(f"{key}.{name}", value, known[name].annotation)
