"""The rules of the house that keep a published repository loadable and the rooms in order, read off the source."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIR = PYPROJECT["tool"]["setuptools"]["package-dir"]

# An arrow points down: a room may use itself and the rooms with a lower number.
FLOORS = {"poise": 4, "hub_cards": 3, "training": 2, "evaluation": 1, "processing": 0, "modeling": 0}
GROUND_FLOOR = [room for room, floor in FLOORS.items() if floor == 0]
# What a machine has that has only transformers with torch (which brings jinja2) and PIL.
REMOTE_CODE_LIBRARIES = {
    "torch",
    "transformers",
    "numpy",
    "PIL",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "jinja2",
}
# Files of the ground floor that are not copied next to the weights may use these too.
GROUND_FLOOR_LIBRARIES = REMOTE_CODE_LIBRARIES | {"datasets", "matplotlib"}
REMOTE_CODE_ROOTS = {"modeling": ["modeling_poise", "modeling_dual_encoder"], "processing": ["processing_poise"]}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def python_files(room: str) -> list[Path]:
    return sorted(path for path in (REPOSITORY / room).rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> list[tuple[int, int, str, list[str]]]:
    """(line, dots, module, names) of every import of a file, those in functions and under conditions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, 0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.level, node.module or "", [alias.name for alias in node.names]))
    return found


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).parts[0]


def rooms_used(path: Path) -> list[tuple[int, str]]:
    """(line, room) of every import of our own code; `from poise import x` counts as the face unless x is a room."""
    package = ["poise", *path.relative_to(REPOSITORY).parts[:-1]]
    if package[1] == "poise":
        del package[0]
    used = []
    for line, dots, module, names in imports(path):
        if dots:
            module = ".".join([*package[: len(package) - dots + 1], *filter(None, [module])])
        first, *rest = module.split(".")
        if first != "poise":
            continue
        targets = [rest[0]] if rest else names or ["poise"]
        used += [(line, target if target in FLOORS else "poise") for target in targets]
    return used


ALL_FILES = [path for room in FLOORS for path in python_files(room)]
GROUND_FILES = [path for room in GROUND_FLOOR for path in python_files(room)]


def named(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("path", ALL_FILES, ids=named)
def test_arrows_point_down(path):
    room = room_of(path)
    wrong = [
        f"{named(path)}:{line} uses {used}"
        for line, used in rooms_used(path)
        if used != room and FLOORS[used] >= FLOORS[room]
    ]
    assert not wrong


@pytest.mark.parametrize("path", ALL_FILES, ids=named)
def test_no_room_is_imported_a_second_time_under_its_own_name(path):
    # With the repository as working directory `import modeling` works, and makes a second copy of every class. The
    # linter refuses it elsewhere, but cannot tell it from `from .file import` inside a room.
    rooms = set(FLOORS) - {"poise"}
    assert [
        (line, module) for line, dots, module, _ in imports(path) if not dots and module.split(".")[0] in rooms
    ] == []


@pytest.mark.parametrize("path", GROUND_FILES, ids=named)
def test_ground_floor_imports_run_from_a_published_repository(path):
    wrong = []
    for line, dots, module, names in imports(path):
        if dots == 0:
            library = module.partition(".")[0]
            if library == "__future__":
                wrong.append(f"{line}: `from __future__` turns off the checks of a @strict configuration")
            elif library not in GROUND_FLOOR_LIBRARIES | sys.stdlib_module_names:
                wrong.append(f"{line}: {module} is not on a machine that has only transformers")
        elif dots > 1 or not module or "." in module:
            wrong.append(f"{line}: {'.' * dots}{module} import {names}: only `from .file import name` is copied")
    assert not wrong, f"{named(path)}: {wrong}"


@pytest.mark.parametrize("path", GROUND_FILES, ids=named)
def test_text_that_looks_like_an_import_is_one(path):
    # transformers finds the files to copy with a regular expression, which also reads docstrings.
    text = path.read_text(encoding="utf-8")
    seen_by_transformers = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE))
    seen_by_transformers |= set(re.findall(r"^\s*import\s+\.(\S+)\s*$", text, flags=re.MULTILINE))
    assert seen_by_transformers == {module for _, dots, module, _ in imports(path) if dots}


@pytest.mark.parametrize("room", GROUND_FLOOR)
def test_what_is_published_needs_only_transformers(room):
    waiting = [name for name in REMOTE_CODE_ROOTS[room] if (REPOSITORY / room / f"{name}.py").exists()]
    assert waiting
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for line, dots, module, _ in imports(REPOSITORY / room / f"{name}.py"):
            library = module.partition(".")[0]
            if dots:
                waiting.append(module)
            else:
                assert library in REMOTE_CODE_LIBRARIES | sys.stdlib_module_names, f"{room}/{name}.py:{line} {module}"


def test_ground_floor_is_flat_and_its_file_names_are_unique():
    # They land in one folder when a model is published.
    assert [named(path) for path in GROUND_FILES if path.parent.parent != REPOSITORY] == []
    count = Counter(path.name for path in GROUND_FILES if path.name != "__init__.py")
    assert [name for name, times in count.items() if times > 1] == []


def test_file_names_name_an_idea():
    assert [named(path) for path in ALL_FILES if path.stem in FORBIDDEN_NAMES] == []


def test_every_folder_with_python_files_is_declared():
    # A forgotten package works in an editable install and is missing from the wheel.
    found = {}
    for name, folder in PACKAGE_DIR.items():
        if name.count(".") <= 1:  # deeper packages lie inside their room
            for path in python_files(folder):
                inside = path.parent.relative_to(REPOSITORY / folder).parts
                found[".".join([name, *inside])] = path.parent
    assert set(found) == set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert [named(folder) for folder in found.values() if not (folder / "__init__.py").exists()] == []


def test_every_room_is_known_to_the_rules():
    assert {PACKAGE_DIR[name] for name in PACKAGE_DIR if name.count(".") <= 1} == set(FLOORS)


@pytest.mark.parametrize("text", ["import modeling", "from processing.scenes import Scenes", "import training.sft"])
def test_the_linter_refuses_a_second_copy_of_a_room(text, tmp_path):
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    command = [ruff, "check", "--config", REPOSITORY / "pyproject.toml", "--select", "TID251", "--no-cache", "-"]
    result = subprocess.run(command, input=text, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and "TID251" in result.stdout
