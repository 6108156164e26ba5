"""The versions that a checkpoint was written with, and one line where they are others than today's."""

import json
import logging
import platform
from importlib.metadata import version
from pathlib import Path

logger = logging.getLogger(__name__)

VERSIONS_FILE = "versions.json"
_PACKAGES = ("poise", "torch", "transformers", "peft", "accelerate", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a checkpoint depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def write_versions(folder: Path) -> None:
    """`versions.json` in the folder."""
    (folder / VERSIONS_FILE).write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")


def warn_of_other_versions(folder: Path) -> str | None:
    """One logged line if the folder was written with other versions, or does not say with which; returned as well."""
    path = folder / VERSIONS_FILE
    if not path.is_file():
        return None
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): the folder is damaged, take another one") from error
    changes = [f"{name} {written[name]} → {now}" for name, now in versions().items() if written.get(name, now) != now]
    if not changes:
        return None
    line = f"{folder} was written with other versions: {', '.join(changes)}; results may differ in the last digits"
    logger.warning(line)
    return line
