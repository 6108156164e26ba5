"""Builds the folder of links through which a type checker sees `poise` as one package.

The rooms stand at the top of the repository and setuptools maps them into `poise`; type checkers do not read that
mapping. This lays out the same package with links, from the same lines of pyproject.toml:

    python tests/packaging/typing_tree.py build/typing
"""

import shutil
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def build(target: Path) -> None:
    """Writes `target`/poise: links to the files of poise/, and one link for every other room."""
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        package_dir = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    if target.exists():
        shutil.rmtree(target)
    package = target / "poise"
    package.mkdir(parents=True)
    for entry in (REPOSITORY / package_dir["poise"]).iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for name, folder in package_dir.items():
        if name.count(".") == 1 and folder != f"poise/{name.partition('.')[2]}":  # the others lie inside these
            (package / name.partition(".")[2]).symlink_to(REPOSITORY / folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
