"""The completion scripts: what a TAB gives in a real shell, and that what is shipped is what the parsers say."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from poise.command_line import COMMANDS, main
from poise.commands.completion import FOLDER, SHELLS

# Gives what bash offers for a line: its words stand in COMP_WORDS, the last of them is being typed.
TAB = """
source /dev/stdin <<'SCRIPT'
{script}
SCRIPT
function=$(complete -p poise | sed -E 's/.*-F ([^ ]+) poise/\\1/')
tab() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}
    "$function" poise "${{@: -1}}" "${{@: -2:1}}" 2>/dev/null  # compopt complains outside of a real TAB
    echo "${{COMPREPLY[*]}}"
}}
{lines}
"""


@pytest.fixture(scope="module")
def press_tab(tmp_path_factory):
    """`press_tab(["poise as", ...])`: for each line the list of words that bash offers."""
    folder = tmp_path_factory.mktemp("completion")
    for name in ("photo.png", "records.jsonl"):
        (folder / name).touch()

    def press(lines):
        words = ["tab " + " ".join(f"'{word}'" for word in line.split(" ")) for line in lines]
        script = TAB.format(script=(FOLDER / "poise.bash").read_text(), lines="\n".join(words))
        done = subprocess.run(["bash", "--norc"], input=script, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [line.split() for line in done.stdout.split("\n")[:-1]]

    return press


def test_every_command_and_every_option_before_it_is_offered(press_tab):
    commands, options = press_tab(["poise ", "poise -"])
    assert set(commands) == set(COMMANDS)
    assert {"--help", "--version", "--debug"} <= set(options)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("poise eval", ["evaluate"]),
        ("poise --debug eval", ["evaluate"]),
        ("poise evaluate --ta", ["--task", "--tags", "--tagger"]),
        ("poise evaluate model --task p", ["pope"]),
        ("poise evaluate ph", ["photo.png"]),
        ("poise evaluate --data rec", ["records.jsonl"]),
        ("poise evaluate --task vqa --data rec", ["records.jsonl"]),
        ("poise evaluate model --trust-remote-code --js", ["--json"]),
        ("poise sft --router_", ["--router_type"]),
        ("poise sft --router_type rel", ["reliability"]),
        ("poise sft --config dem", ["demo"]),
        ("poise sft --config demo --quantization n", ["none", "nf4"]),
        ("poise align --config al", ["align", "align_dinov2_roberta"]),
        ("poise preference --bet", ["--beta"]),
        ("poise interpret model --only lens kn", ["knockout"]),
        ("poise data ", ["convert", "show"]),
        ("poise data convert --sk", ["--skip-missing"]),
        ("poise backbones --only ca", ["causal_lm"]),
        ("poise completion f", ["fish"]),
        ("poise publish run --ad", ["--adapter-only"]),
        ("poise publish run --learn", []),  # an option of another command
    ],
)
def test_what_a_tab_offers(press_tab, line, offered):
    assert press_tab([line]) == [offered]


def test_what_is_shipped_is_what_the_parsers_say():
    builder = pytest.importorskip(
        "poise.commands.completion_builder", reason="shtab is not installed: pip install shtab"
    )
    scripts = builder.build_scripts()
    again = "an option has changed: run `python -m poise.commands.completion_builder`"
    # bash's script holds no help texts, so that a reworded one changes nothing here.
    assert scripts["bash"] == (FOLDER / "poise.bash").read_text(encoding="utf-8"), again
    for shell in ("zsh", "fish"):
        shipped = (FOLDER / f"poise.{shell}").read_text(encoding="utf-8")
        marks = r'"(--[\w.-]+)\[' if shell == "zsh" else r"-l ([\w.-]+)"
        options = re.findall(marks, scripts[shell])
        assert len(options) > 200 and set(options) == set(re.findall(marks, shipped)), again


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS) and str(Path.home()) not in script
    interpreter = shutil.which(shell)
    if interpreter is None:
        pytest.skip(f"{shell} is not installed")
    checked = subprocess.run([interpreter, "-n"], input=script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
