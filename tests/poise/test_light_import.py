"""`import poise` and `poise --help` load none of the heavy libraries, and the names of the package are there."""

import json
import subprocess
import sys

import pytest

import poise
from poise.command_line import COMMANDS

HEAVY = ["torch", "transformers", "numpy", "PIL", "datasets", "peft", "accelerate", "trl", "huggingface_hub"]
REPORT = "import json, sys; print(json.dumps(sorted(name for name in sys.modules if '.' not in name)))"


def libraries_after(code: str, *arguments: str) -> set[str]:
    """Top-level modules that a new process holds after running `code`."""
    result = subprocess.run([sys.executable, "-c", f"{code}\n{REPORT}", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def run_command(arguments: str) -> str:
    return (
        "import contextlib, io\nfrom poise.command_line import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({arguments})"
    )


KEPT_SCRIPT = """
import os, tempfile
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
from poise.commands.completion import cached_script
path = cached_script("bash")
path.parent.mkdir(parents=True)
path.write_text("complete")
"""


@pytest.mark.parametrize(
    "code",
    [
        "import poise",
        "import poise.modeling, poise.processing, poise.training, poise.evaluation, poise.hub_cards",
        run_command("['--help']"),
        run_command("['--version']"),
        KEPT_SCRIPT + run_command("['completion', 'bash']"),
        run_command("['ask', '--help']"),
    ],
    ids=["poise", "rooms", "help", "version", "completion", "ask-help"],
)
def test_nothing_heavy_is_imported(code):
    assert libraries_after(code) & set(HEAVY) == set()


def test_a_slip_on_the_command_line_is_found_before_torch_is_imported(tmp_path):
    (tmp_path / "empty.png").touch()
    code = f"""
from poise.command_line import main
assert main(["ask", {str(tmp_path)!r}, {str(tmp_path / "empty.png")!r}, "what?"]) == 1
assert main(["ask", {str(tmp_path)!r}, {str(tmp_path / "empty.png")!r}, "what?", "--tags", "dog:2"]) == 1
"""
    assert libraries_after(code) & {"torch", "transformers"} == set()


def test_names_of_the_package():
    assert set(poise.__all__) <= set(dir(poise))
    for name in poise.__all__:
        assert getattr(poise, name).__name__ == name
    with pytest.raises(AttributeError, match="PoiseMode1"):
        poise.PoiseMode1  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_tells_its_options(command, capsys):
    from poise.command_line import main

    with pytest.raises(SystemExit) as leaving:
        main([command.name, "--help"])
    assert leaving.value.code == 0
    assert "usage: poise " + command.name in capsys.readouterr().out
