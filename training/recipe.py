"""A recipe: one YAML file that says what a run does, each field of which a command line can override.

Mistakes are found before any model is loaded. The resolved recipe is written beside what the run makes, so that a
checkpoint always tells how it came to be.
"""

import dataclasses
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig, TrainingArguments

from poise.modeling import PoiseConfig
from poise.training.parameter_groups import PARAMETER_GROUPS
from poise.training.recipe_checks import check_values

# Fields of the configuration that a recipe does not write there: backbones by name, task-routed adapters under `lora`.
_NESTED = ("vision_config", "text_config", "tag_encoder_config", "image_token_id", "backbones", "task_adapter_rank",
           "task_adapter_scale", "task_adapter_dropout")  # fmt: skip


def _model_fields() -> tuple[str, ...]:
    """What `PoiseForConditionalGeneration.from_backbones` takes beyond the backbones' names."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(PoiseConfig)} - inherited - set(_NESTED)
    return tuple(sorted(own))


SECTIONS: dict[str, tuple[str, ...]] = {
    "model": (
        "vision",
        "text",
        "tag_encoder",
        "dtype",
        "quantization",
        "align_words",
        "align_pictures",
        *_model_fields(),
    ),
    "processor": ("tag_words", "max_tags", "chat_template"),
    "data": (
        "train",
        "evaluation",
        "image_folder",
        "tagger",
        "scenes",
        "max_length",
        "evaluation_samples",
        "max_new_tokens",
        "feature_cache",
        "feature_cache_dtype",
        "packing",
        "streaming",
        "shuffle_buffer",
    ),
    "lora": ("r", "alpha", "dropout", "target_modules", "use_dora", "use_rslora", "task_routed"),
    "learning_rates": PARAMETER_GROUPS,
    "checks": ("allow_without_gradient",),
    "early_stopping": ("patience", "threshold"),
    "training": tuple(field.name for field in dataclasses.fields(TrainingArguments)),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"tag_encoder": None, "dtype": "float32", "quantization": "none", "align_words": False,
              "align_pictures": 0},
    "processor": {},
    "data": {"evaluation": None, "image_folder": None, "tagger": None, "scenes": {}, "max_length": None,
             "evaluation_samples": 200, "max_new_tokens": 20, "feature_cache": False, "feature_cache_dtype": "float32",
             "packing": None, "streaming": False, "shuffle_buffer": 1000},
    "lora": {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": None, "use_dora": False, "use_rslora": False,
             "task_routed": False},
    "learning_rates": {"new_modules": 1e-3, "adapters": 2e-4},
    "checks": {"allow_without_gradient": []},
    "early_stopping": {"patience": None, "threshold": 0.0},
    "training": {},
}  # fmt: skip


@dataclasses.dataclass
class Recipe:
    """
    What a run does, section by section; see `training/recipes/` for written-out ones.

    model: backbones by Hub id, folder or `tiny:NAME` (the shipped ones), `dtype`, `quantization`, `align_words` (the
        soft prompt starts with the language model's words, see `word_alignment`), `align_pictures` (how many tagged
        pictures the projector's first words are fitted to, see `picture_alignment`), `PoiseConfig` fields.
    processor: `tag_words`, `max_tags`, `chat_template`.
    data: `train` and `evaluation` ("scenes", a JSON-lines file of task records, a folder, a data set on disk or on the
        Hub; or a list of `{name, weight, split, columns}`, see `RecordSource`), `streaming` with its `shuffle_buffer`,
        `packing` (short samples in rows of so many tokens), `tagger`
        (a dual encoder's folder or a file of tags, in place of the records' own tags), `feature_cache` (a folder, or
        `true` for one beside the run: frozen towers run once, see `sft_features`), knobs.
    lora: rank and so on, or `None` to leave the language model untouched; `task_routed` makes two of them, see
        `modeling/task_routed_adapters.py`.
    learning_rates: by group a rate, or `{rate, weight_decay, schedule, warmup}`; a group that is not named is not
        trained.
    checks: `allow_without_gradient`, modules that may stay without a gradient in the first step.
    early_stopping: `patience` in evaluations without progress of `training.metric_for_best_model`, `threshold`.
    training: fields of `transformers.TrainingArguments`.
    """

    model: dict[str, Any]
    processor: dict[str, Any]
    data: dict[str, Any]
    lora: dict[str, Any] | None
    learning_rates: dict[str, Any]
    checks: dict[str, Any]
    early_stopping: dict[str, Any]
    training: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write the resolved recipe as YAML."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")


def _unknown(what: str, name: str, known: Sequence[str]) -> ValueError:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known)[:12])} …"
    return ValueError(f"{what} {name!r} is not known: {hint}")


def recipe_path(name: str) -> Path:
    """A recipe file: a path, or the name of a shipped one ("demo", "demo.yaml", "recipes/demo.yaml")."""
    if Path(name).is_file():
        return Path(name)
    shipped = importlib.resources.files("poise.training") / "recipes"
    path = Path(str(shipped)) / f"{Path(name).stem}.yaml"
    if path.is_file():
        return path
    names = sorted(file.stem for file in Path(str(shipped)).glob("*.yaml"))
    raise _unknown("recipe", name, names)


def load_recipe(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """
    The recipe of that name with `overrides` applied, checked.

    Args:
        name (`str`, *optional*): file or shipped name; without one only defaults and overrides count.
        overrides (`Mapping[str, Any]`, *optional*): `{"router_type": "gate", "training.max_steps": 10}`; a bare key
        must
            stand in one section only, or be written with its section.

    Raises:
        ValueError: unknown recipe, section or key (with the nearest known one), or a value that cannot be.
    """
    written = {}
    if name is not None:
        path = recipe_path(name)
        try:
            written = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe {path}: not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(written, dict):
            raise ValueError(f"recipe {path}: expected sections {', '.join(SECTIONS)}, found {type(written).__name__}")
    sections = _merged(written)
    for key, value in (overrides or {}).items():
        section, field = _locate(key)
        if sections[section] is None:
            sections[section] = dict(DEFAULTS[section])
        sections[section][field] = value
    rates = sections["learning_rates"]  # null takes back what the file says
    sections["learning_rates"] = {group: rate for group, rate in rates.items() if rate is not None}
    for field, value in sections["training"].items():
        if field.endswith("_strategy") and value is False:
            sections["training"][field] = "no"  # YAML reads the word no as false
    recipe = Recipe(**sections)
    check_values(recipe)
    # Every contradiction that the configuration can see without the backbones' own shapes is seen here.
    PoiseConfig(**{key: value for key, value in recipe.model.items() if key in _model_fields()})
    return recipe


def _merged(written: Mapping[str, Any]) -> dict[str, Any]:
    sections: dict[str, Any] = {name: dict(default) for name, default in DEFAULTS.items()}
    for name, content in written.items():
        if name not in SECTIONS:
            raise _unknown("recipe section", name, list(SECTIONS))
        if content is None:
            sections[name] = None if name == "lora" else sections[name]
            continue
        if not isinstance(content, dict):
            raise ValueError(f"recipe section {name!r} holds {content!r}: write keys below it")
        for field in content:
            if field not in SECTIONS[name]:
                raise _unknown(f"recipe key in section {name!r}:", field, SECTIONS[name])
        # Naming one learning rate chooses the groups; the defaults would add others behind the reader's back.
        sections[name] = dict(content) if name == "learning_rates" else {**sections[name], **content}
    return sections


def _locate(key: str) -> tuple[str, str]:
    if "." in key:
        section, field = key.split(".", 1)
        if section not in SECTIONS:
            raise _unknown("recipe section", section, list(SECTIONS))
        if field not in SECTIONS[section]:
            raise _unknown(f"recipe key in section {section!r}:", field, SECTIONS[section])
        return section, field
    homes = [section for section, fields in SECTIONS.items() if key in fields]
    if not homes:
        raise _unknown("recipe key", key, [field for fields in SECTIONS.values() for field in fields])
    if len(homes) > 1:
        choices = " or ".join(f"{home}.{key}" for home in homes)
        raise ValueError(f"recipe key {key!r} stands in {len(homes)} sections: write {choices}")
    return homes[0], key


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """
    `["--router_type", "gate", "--max_steps=10"]` → `{"router_type": "gate", "max_steps": 10}`; values are YAML.

    Raises:
        ValueError: a word that is no option, or an option without a value.
    """
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"argument {word!r} was not expected: options are written --key value")
        key, separator, value = word[2:].partition("=")
        if not separator:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"option --{key} needs a value: write --{key} VALUE")
            value = rest.pop(0)
        try:
            overrides[key.replace("-", "_")] = _number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ValueError(f"option --{key} {value!r} is no YAML: put quotes around it") from error
    return overrides


def source_override(word: str) -> Any:
    """What `--data` says, as `data.train`: a name as it stands, a mapping `{name: …}` or a list `[…]` read as YAML.

    Raises:
        ValueError: braces or brackets around what is no YAML.
    """
    if not word.startswith(("{", "[")):
        return word
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise ValueError(
            f"--data {word!r} is no YAML: write {{name: user/photos, split: train}}, with a space behind each colon"
        ) from error


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as a string; on a command line everybody means the number.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
