"""The index of papers names files that exist, and every paper that the code names."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE = (REPOSITORY / "docs" / "papers.md").read_text(encoding="utf-8")
# Cards cite works for their readers; that list is a method of nothing.
ROOMS = ("modeling", "processing", "training", "evaluation")
NUMBER = re.compile(r"\b\d{4}\.\d{5}\b")


def test_every_file_of_the_index_exists():
    named = re.findall(r"`((?:modeling|processing|training|evaluation)/[\w/]+\.py)`", PAGE)
    assert len(named) > 30
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


def test_every_line_names_a_method_a_work_a_file_and_a_formula():
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith("| method"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 4 and all(cells), line
            assert re.search(r"`[\w/]+\.py`", cells[2]), line


def test_every_paper_that_the_code_names_is_in_the_index():
    missing = {}
    for room in ROOMS:
        for path in (REPOSITORY / room).rglob("*.py"):
            for number in NUMBER.findall(path.read_text(encoding="utf-8")):
                if number not in PAGE:
                    missing.setdefault(number, path.relative_to(REPOSITORY).as_posix())
    assert missing == {}
