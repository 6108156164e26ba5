"""Saved models are read whole, or refused in one line: damaged files, weights of another model, weights missing."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from ..processing.records.json_lines import read_json

# What the libraries raise where a file is cut, is no JSON, no weights, or holds values of other types.
_DAMAGES = (
    SafetensorError, StrictDataclassError, RecursionError, UnicodeDecodeError, json.JSONDecodeError, UnpicklingError,
)  # fmt: skip
_REMEDY = "copy or download it again"


def saved_config(folder: str | os.PathLike, argument: str = "model") -> dict[str, Any]:
    """What config.json of a saved model holds.

    Args:
        argument (`str`, *optional*, defaults to `"model"`): what the error calls the folder.

    Raises:
        ValueError: no text in UTF-8, no JSON, or no object.
    """
    try:
        found = read_json(Path(folder) / "config.json")
    except ValueError as error:
        raise ValueError(f"{argument}={os.fspath(folder)!r} is damaged, {error} {_REMEDY.capitalize()}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{argument}={os.fspath(folder)!r} is damaged, config.json holds no object; {_REMEDY}.")
    return found


def check_saved(folder: str | os.PathLike, argument: str = "model") -> None:
    """Looks at what a folder holds without reading weights: config.json, and the headers of files of weights.

    Raises:
        ValueError: one of them is damaged or cut; the message calls the folder `argument`.
    """
    if (Path(folder) / "config.json").is_file():
        saved_config(folder, argument)
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{argument}={os.fspath(folder)!r} is damaged, {path.name} ({error}); {_REMEDY}."
            ) from None


@contextmanager
def loading_errors(name: str | os.PathLike, argument: str = "model") -> Iterator[None]:
    """
    Within it a saved model is loaded, and what of its files cannot be read is one line.

    Args:
        name: a folder, or a repository of the Hub.
        argument (`str`, *optional*, defaults to `"model"`): what the line calls it.

    Raises:
        ValueError: a damaged file, or weights of other shapes than the model's.
    """
    check_saved(name, argument)
    try:
        yield
    except _DAMAGES as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{argument}={os.fspath(name)!r} is damaged ({reason}); {_REMEDY}.") from error
    except RuntimeError as error:
        if not any(words in str(error) for words in ("ignore_mismatched_sizes", "Error(s) in loading state_dict")):
            raise
        raise ValueError(
            f"{argument}={os.fspath(name)!r} holds weights of other shapes than its config.json tells: take both from "
            "one model."
        ) from error


def load_whole(model_class: Any, name: str | os.PathLike, argument: str = "model", **options: Any) -> Any:
    """
    `model_class.from_pretrained(name, **options)` of a model that lacks no weight (transformers would draw one).

    Raises:
        ValueError: as [`loading_errors`], or a weight is missing.
    """
    folder = Path(name)
    is_model = (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()
    with loading_errors(name, argument):
        loaded = model_class.from_pretrained(name, **options, **({"output_loading_info": True} if is_model else {}))
    if not isinstance(loaded, tuple):  # of adapters, or of a router, which compare for themselves
        return loaded
    model, report = loaded
    drawn = set(report["missing_keys"]) & {key for key, _ in model.named_parameters()}
    missing = sorted(key for key in drawn if "pooler" not in key)  # nothing reads a pooler
    if missing:
        raise ValueError(
            f"{argument}={os.fspath(name)!r} lacks {len(missing)} of its weights, such as {missing[0]!r}, which would "
            "be random: copy or download it again, or take the weights that belong to its config.json."
        )
    return model
