"""Every command: its help, its parser, and an unknown option; for other slips see test_bad_inputs.py."""

import pytest

from poise.command_line import COMMANDS, main


def run(words, capsys):
    """(exit code, stdout, stderr) of `poise WORDS`."""
    try:
        code = main(words)
    except SystemExit as leaving:
        code = leaving.code or 0
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_tells_what_it_does(name, capsys):
    code, out, err = run([name, "--help"], capsys)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: poise {name}")
    assert len(out.splitlines()) > 4


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_its_parser_can_be_had_without_running_it(name):
    module = COMMANDS[name].load()
    assert module.build_parser().prog == f"poise {name}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_word_too_many_is_refused_without_a_traceback(name, capsys):
    # 2 from the parser; 1 where fields of a recipe are options and this is none of them.
    code, out, err = run([name, "--no_such_option"], capsys)
    assert code in (1, 2) and out == ""
    assert "Traceback" not in err and ("no_such_option" in err or "required" in err or "missing" in err)
