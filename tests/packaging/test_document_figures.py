"""Figures that stand right behind the command that prints them are printed anew and compared: `make docs-figures`.

Words must be the same, numbers within two units of their last printed digit plus one per cent: what other processors
round differently moves figures by less, what a change of the code does by more.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PRINTED = re.compile(r"(<!--[^\n]*-->\n)?```bash\n((?:(?!```).)*)```\s*\n```text\n((?:(?!```).)*)```", re.S)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")


def printed_figures():
    for document in [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/**/*.md"))]:
        for mark, command, shown in PRINTED.findall(document.read_text(encoding="utf-8")):
            if not mark.startswith(("<!-- parse only", "<!-- slow")):  # need a run, or show a part of what is printed
                yield pytest.param(command, shown, id=f"{document.name}-{shlex.split(command)[1]}")


def value(number):
    return float(number.replace(",", ""))


def differences(shown, printed):
    """Shown lines of which no printed line says the same."""
    found = []
    for line in filter(str.strip, shown.splitlines()):
        words = NUMBER.sub("#", " ".join(line.split()))
        same = [other for other in printed.splitlines() if NUMBER.sub("#", " ".join(other.split())) == words]
        if not any(all(map(close, NUMBER.findall(line), NUMBER.findall(other))) for other in same):
            found.append((line, same))
    return found


def close(shown, printed):
    unit = 10.0 ** -len(shown.partition(".")[2])
    return abs(value(shown) - value(printed)) <= 2 * unit + 0.01 * abs(value(shown))


def test_what_counts_as_a_difference():
    shown = "kept 1,217 of 5,000\nGini: 0.802, 0.035"
    assert differences(shown, "kept 1,218 of 5,000\nGini:  0.803, 0.034\nmore") == []
    assert [line for line, _ in differences(shown, "kept 1,300 of 5,000\nGini: 0.802, 0.035")] == [
        "kept 1,217 of 5,000"
    ]
    assert len(differences(shown, "kept 1,217 of 5,000\nGini: 0.846, 0.035")) == 1
    assert len(differences(shown, "nothing")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), printed_figures())
def test_documents_show_what_commands_print(command, shown, tmp_path):
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "poise"
    done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert differences(shown, done.stdout) == []
