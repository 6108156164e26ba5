"""A type checker sees the package through the link tree, and `make lint` would notice a wrong call."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RIGHT = "from poise.processing.tags import Tag, parse_tags\ntags: list[Tag] = parse_tags('dog:0.97')\n"
WRONG = "from poise.processing.tags import parse_tags\nnumber: int = parse_tags(0.97)\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The link tree, apart from the one that `make lint` uses."""
    pytest.importorskip("mypy", reason="mypy is not installed; pip install -e .[lint]")
    folder = tmp_path_factory.mktemp("typing") / "tree"
    script = REPOSITORY / "tests" / "packaging" / "typing_tree.py"
    for _ in range(2):  # a tree that is there already is laid anew
        subprocess.run([sys.executable, script, folder], check=True)
    return folder


def test_the_tree_holds_every_room_and_follows_edits(tree):
    for file in (
        "__init__.py",
        "commands/ask.py",
        "modeling/modeling_poise.py",
        "training/__init__.py",
        "hub_cards/__init__.py",
    ):
        assert (tree / "poise" / file).is_file(), file
    assert (tree / "poise" / "modeling").resolve() == REPOSITORY / "modeling"


@pytest.mark.slow
def test_a_wrong_call_is_found_and_a_right_one_is_not(tree, tmp_path):
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    config = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    config = config.replace('mypy_path = "build/typing"', f'mypy_path = "{tree}"').replace('packages = ["poise"]\n', "")
    (tmp_path / "pyproject.toml").write_text(config)
    for name, code, errors in (("right.py", 0, []), ("wrong.py", 1, ["assignment", "arg-type"])):
        command = [sys.executable, "-m", "mypy", "--follow-imports=silent", name]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == code, result.stdout
        assert all(f"[{error}]" in result.stdout for error in errors), result.stdout
