"""Rules that keep a published repository loadable and the packages in order, read off the source."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SETUPTOOLS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]

# A package may import itself and the packages with a lower number.
ORDER = {"poise": 4, "hub_cards": 3, "training": 2, "evaluation": 1, "processing": 0, "modeling": 0}
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
REMOTE_CODE_ROOTS = {"modeling": ["modeling_poise", "modeling_dual_encoder"], "processing": ["processing_poise"]}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_FILES = 18  # of a package, with its __init__.py; modeling/ is published as it lies, and a command is a file


def source_files(package: str) -> list[Path]:
    return sorted(path for path in (REPOSITORY / package).rglob("*.py") if "__pycache__" not in path.parts)


SOURCE = [path for package in ORDER for path in source_files(package)]
#: What may be copied next to the weights of a published model.
PUBLISHED = [
    path for package in REMOTE_CODE_ROOTS for path in (REPOSITORY / package).glob("*.py") if path.name != "__init__.py"
]


def named(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def imports(path: Path) -> list[tuple[int, int, str, list[str]]]:
    """(line, dots, module, names) of every import of a file, those in functions and under conditions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, 0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.level, node.module or "", [alias.name for alias in node.names]))
    return found


def package_of(path: Path) -> list[str]:
    """The dotted name of the package a file lies in, in parts: poise/commands/ask.py → poise, commands."""
    parts = list(path.relative_to(REPOSITORY).parts[:-1])
    return parts if parts[0] == "poise" else ["poise", *parts]


def file_of(module: str) -> Path | None:
    """The file of a module of ours, `None` if there is none of that name."""
    _, *parts = module.split(".")
    top = REPOSITORY if parts and parts[0] in set(ORDER) - {"poise"} else REPOSITORY / "poise"
    path = top.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def files_used(path: Path) -> set[tuple[int, Path]]:
    """(line, file) of every import of our own code."""
    used = set()
    for line, dots, module, names in imports(path):
        if dots:
            package = package_of(path)
            module = ".".join([*package[: len(package) - dots + 1], *filter(None, [module])])
        if module.split(".")[0] == "poise":
            for name in names or [""]:
                file = file_of(f"{module}.{name}") if name else None
                file = file or file_of(module)
                assert file is not None, f"{named(path)}:{line} imports {module}, which is no file of ours"
                used.add((line, file))
    return used


USED = {path: files_used(path) for path in SOURCE}


def test_imports_point_down():
    top = {path: path.relative_to(REPOSITORY).parts[0] for path in SOURCE}
    wrong = [
        f"{named(path)}:{line} uses {named(used)}"
        for path, all_used in USED.items()
        for line, used in all_used
        if top[used] != top[path] and ORDER[top[used]] >= ORDER[top[path]]
    ]
    assert not wrong


def check_order(graph: dict) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(map(str, error.args[1]))}")


def test_no_circle_of_files_or_packages():
    # The lazy names of an __init__.py are for users; nothing that it names imports through it in a circle.
    files, packages = {}, {}
    for path, all_used in USED.items():
        if path.name == "__init__.py":
            continue
        targets = {used for _, used in all_used if used.name != "__init__.py"} - {path}
        files[named(path)] = {named(used) for used in targets}
        packages.setdefault(named(path.parent), set()).update(
            named(used.parent) for used in targets if used.parent != path.parent
        )
    check_order(files)
    check_order(packages)


def test_packages_are_small_and_lie_at_most_two_levels_deep():
    count = Counter(path.parent for path in SOURCE)
    large = {named(folder): files for folder, files in count.items() if files > MAX_FILES}
    assert set(large) <= {"modeling", "poise/commands"}  # a command is a file
    assert [named(folder) for folder in count if len(folder.relative_to(REPOSITORY).parts) > 2] == []


def test_imports_of_our_own_code_are_relative_and_absolute_in_poise():
    # Relative ones are found by a type checker in a bare clone, where nothing maps the folders into `poise`.
    # `evaluate` copies the metrics out of the package before it loads them.
    wrong = []
    for path in SOURCE:
        if path.parent.name == "metrics":
            continue
        for line, dots, module, _ in imports(path):
            absolute = not dots and module.split(".")[0] == "poise"
            if absolute if package_of(path)[1:2] and path.parts[len(REPOSITORY.parts)] != "poise" else dots:
                wrong.append(f"{named(path)}:{line}")
    assert not wrong


def test_no_package_is_imported_a_second_time_under_its_own_name():
    # With the repository as working directory `import modeling` works, and makes a second copy of every class.
    tops = set(ORDER) - {"poise"}
    listed = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, cwd=REPOSITORY)
    files = [REPOSITORY / name for name in listed.stdout.split()] or SOURCE
    wrong = [
        f"{named(path)}:{line}"
        for path in files
        if path.is_file()
        for line, dots, module, _ in imports(path)
        if not dots and module.split(".")[0] in tops
    ]
    assert not wrong


@pytest.mark.parametrize("path", PUBLISHED, ids=named)
def test_what_is_published_runs_from_a_repository_of_its_own(path):
    wrong = []
    for line, dots, module, names in imports(path):
        if dots == 0:
            library = module.partition(".")[0]
            if library == "__future__":
                wrong.append(f"{line}: `from __future__` turns off the checks of a @strict configuration")
            elif library not in REMOTE_CODE_LIBRARIES | sys.stdlib_module_names:
                wrong.append(f"{line}: {module} is not on a machine that has only transformers")
        elif dots > 1 or not module or "." in module or not path.with_name(f"{module}.py").is_file():
            wrong.append(f"{line}: {'.' * dots}{module} import {names}: only `from .file import name` is copied")
    # transformers finds the files to copy with a regular expression, which also reads docstrings.
    text = path.read_text(encoding="utf-8")
    seen_by_transformers = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE))
    seen_by_transformers |= set(re.findall(r"^\s*import\s+\.(\S+)\s*$", text, flags=re.MULTILINE))
    assert not wrong, f"{named(path)}: {wrong}"
    assert seen_by_transformers == {module for _, dots, module, _ in imports(path) if dots}


def test_published_file_names_are_unique():
    # They land in one folder when a model is published.
    count = Counter(path.name for path in PUBLISHED)
    assert [name for name, times in count.items() if times > 1] == []
    assert all(
        (REPOSITORY / top / f"{root}.py").is_file() for top, roots in REMOTE_CODE_ROOTS.items() for root in roots
    )


def test_file_names_name_an_idea():
    assert [named(path) for path in SOURCE if path.stem in FORBIDDEN_NAMES] == []


def test_every_folder_with_python_files_is_declared():
    # A forgotten package works in an editable install and is missing from the wheel.
    folders = {path.parent for path in SOURCE}
    declared = {name: REPOSITORY / SETUPTOOLS["package-dir"][name] for name in SETUPTOOLS["packages"]}
    assert {".".join(package_of(folder / "x.py")): folder for folder in folders} == declared
    assert [named(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
