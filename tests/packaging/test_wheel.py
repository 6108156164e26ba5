"""The wheel holds every file of every room, and everything in it can be imported and found without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
# A package inside another one's folder (poise/commands) travels with it.
ROOMS = {name: folder for name, folder in PYPROJECT["tool"]["setuptools"]["package-dir"].items() if "/" not in folder}

pytestmark = pytest.mark.slow


def run(*command, cwd, **environment):
    """Runs a command that must succeed, away from the checkout, and returns what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=inherited | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def files_of_the_rooms() -> set[str]:
    """Paths as they must stand in the wheel: every file of every room, whatever its kind."""
    return {
        "/".join([*name.split("."), *path.relative_to(REPOSITORY / folder).parts])
        for name, folder in ROOMS.items()
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Source archive of a copy of the checkout, and the wheel of that archive: what an index would serve."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ROOMS.values():
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=source)
    (archive,) = folder.glob("*.tar.gz")
    pip_wheel = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip_wheel, "--wheel-dir", folder, archive, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory) -> Path:
    """Python of a new environment with the wheel, and with the libraries (but not the Poise) of the running one."""
    folder = tmp_path_factory.mktemp("clean") / "environment"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A line in a .pth file puts a folder on the path without reading the .pth files in it, so the finder of the
    # editable install stays behind.
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_holds_exactly_the_files_of_the_rooms(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("poise/")}
    assert names == files_of_the_rooms()


def test_wheel_names_licence_version_and_command(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    text = archive.read(metadata).decode()
    import poise

    assert f"\nVersion: {poise.__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "poise = poise.command_line:main" in archive.read(entry_points).decode()


def test_every_module_of_the_wheel_can_be_imported(clean_python):
    script = """
import importlib, json, pkgutil, sys, poise
skipped = sys.argv[1:]
found = {"poise": poise.__file__}
for module in pkgutil.walk_packages(poise.__path__, "poise."):
    if module.name not in skipped:
        found[module.name] = importlib.import_module(module.name).__file__
print(json.dumps(found))
"""
    # The plugin is imported by lmms-eval alone; without lmms-eval there is nothing to plug it into.
    skipped = {"poise.__main__"} | ({"poise.lmms_eval_model"} if find_spec("lmms_eval") is None else set())
    found = json.loads(run(clean_python, "-c", script, *sorted(skipped), cwd=clean_python.parent).splitlines()[-1])
    home = clean_python.parent.parent
    assert [file for file in found.values() if home not in Path(file).parents] == []
    modules = {
        path.removesuffix(".py").removesuffix("/__init__") for path in files_of_the_rooms() if path.endswith(".py")
    }
    assert set(found) == {module.replace("/", ".") for module in modules} - skipped


def test_every_data_file_of_the_wheel_is_found(clean_python):
    data = {}  # path in the wheel -> (package, path inside it)
    for path in files_of_the_rooms():
        if not path.endswith(".py"):
            room = next(
                (name for name in ROOMS if name != "poise" and path.startswith(name.replace(".", "/") + "/")), "poise"
            )
            data[path] = (room, path[len(room) + 1 :])
    script = """
import importlib.resources, json, sys
places = json.loads(sys.argv[1])
read = lambda package, path: importlib.resources.files(package).joinpath(path).read_bytes()
print(json.dumps({name: len(read(*place)) for name, place in places.items()}))
"""
    sizes = json.loads(run(clean_python, "-c", script, json.dumps(data), cwd=clean_python.parent))
    assert sizes == {name: (REPOSITORY / ROOMS[room] / path).stat().st_size for name, (room, path) in data.items()}


def test_the_command_of_the_wheel_runs(clean_python):
    assert "commands:" in run(clean_python.with_name("poise"), "--help", cwd=clean_python.parent)
    assert "commands:" in run(clean_python, "-m", "poise", "--help", cwd=clean_python.parent)
