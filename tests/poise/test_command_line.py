"""Exit codes and error lines of the `poise` command."""

import logging
import subprocess
import sys
import types

import pytest

from poise import __version__, command_line
from poise.command_line import COMMANDS, HARMLESS, Command, HarmlessMessage, main, quiet_libraries


@pytest.fixture
def fake_command(monkeypatch):
    """Makes `poise fake` run a function of the test."""

    def install(function, **fields):
        module = types.ModuleType("poise_fake_command")
        module.main = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(COMMANDS, "fake", Command("fake", "", "", module.__name__, **fields))

    return install


def raising(error):
    def function(argv):
        raise error

    return function


def test_help_has_one_line_and_one_example_for_every_command(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    text = capsys.readouterr().out
    assert leaving.value.code == 0
    for command in COMMANDS.values():
        assert command.example in text
        assert any(line.split() == [command.name, *command.summary.split()] for line in text.splitlines())
        assert "\n" not in command.summary and f"poise {command.name}" in command.example


def test_version(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"poise {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["--no-such-option"], ["completion"], ["completion", "ed"]])
def test_a_wrong_command_line_is_2(argv, capsys):
    try:
        code = main(argv)
    except SystemExit as leaving:
        code = leaving.code
    output = capsys.readouterr()
    assert code == 2
    assert "usage: poise" in output.out + output.err


@pytest.mark.parametrize("code", [0, 1])
def test_the_commands_own_code_is_returned(fake_command, code):
    fake_command(lambda argv: code)
    assert main(["fake"]) == code


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("router_type='chanel' is unknown;\n  use channel"), "router_type='chanel' is unknown; use channel"),
        (FileNotFoundError(2, "No such file", "x.yaml"), "x.yaml: No such file; check the path"),
        (OSError("disk\nfull"), "disk full"),
        (
            ImportError("bitsandbytes is missing; pip install bitsandbytes"),
            "bitsandbytes is missing; pip install bitsandbytes",
        ),
        (ValueError(), "ValueError"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_bad_input_is_one_line_and_1(fake_command, capsys, error, line):
    fake_command(raising(error))
    assert main(["fake"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"poise fake: {line}\n"


@pytest.mark.parametrize("argv", [["--debug", "fake"], ["fake", "--debug"], ["fake", "word", "--debug"]])
def test_debug_shows_where_it_happened(fake_command, argv):
    fake_command(raising(ValueError("bad")))
    with pytest.raises(ValueError, match="bad"):
        main(argv)


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RuntimeError("x"), ImportError("x", name="poise.x")])
def test_a_mistake_in_the_program_is_not_hidden(fake_command, error):
    fake_command(raising(error))
    with pytest.raises(type(error)):
        main(["fake"])


def test_words_behind_the_command_reach_it_unchanged(fake_command):
    seen = []
    fake_command(lambda argv: seen.extend(argv) or 0)
    assert main(["--debug", "fake", "fake", "-x", "--config", "a.yaml", "--debug", "--help"]) == 0
    assert seen == ["fake", "-x", "--config", "a.yaml", "--help"]


@pytest.mark.parametrize("set_before, one_thread, expected", [(None, True, "1"), ("3", True, "3"), (None, False, None)])
def test_tiny_commands_run_on_one_thread(fake_command, monkeypatch, set_before, one_thread, expected):
    import os

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_before is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_before)
    seen = []
    fake_command(lambda argv: seen.append(os.environ.get("OMP_NUM_THREADS")) or 0, one_thread=one_thread)
    try:
        main(["fake"])
    finally:
        if set_before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
    assert seen == [expected]


def test_a_reader_that_leaves_early_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = f"{sys.executable} -m poise completion bash | true"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr


def test_python_dash_m_is_the_command():
    result = subprocess.run([sys.executable, "-m", "poise", "nonsense"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "argument COMMAND: 'nonsense' is not known: `poise --help` lists them" in result.stderr


def test_a_misspelt_command_is_told_the_nearest(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["evalute"])
    assert leaving.value.code == 2
    assert capsys.readouterr().err.endswith("'evalute' is not known: did you mean 'evaluate'?\n")


def test_only_known_harmless_messages_are_dropped(caplog):
    quiet_libraries()
    quiet_libraries()
    for name, text in HARMLESS.items():
        logger = logging.getLogger(name)
        assert sum(isinstance(known, HarmlessMessage) for known in logger.filters) == 1
        assert not logger.filter(logging.LogRecord(name, logging.WARNING, "", 0, f"`X` {text} %s", ("y",), None))
        assert logger.filter(logging.LogRecord(name, logging.WARNING, "", 0, "something else", (), None))


def test_errors_of_argparse_are_a_commands_own(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["ask", "only-a-model"])
    assert leaving.value.code == 2
    assert "usage: poise ask" in capsys.readouterr().err


def test_table_names_modules_that_exist():
    import importlib.util

    for command in COMMANDS.values():
        assert importlib.util.find_spec(command.module.partition(":")[0]) is not None, command.module
    assert command_line.USER_ERRORS == (ValueError, OSError, ImportError)
