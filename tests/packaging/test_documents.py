"""Every code block of README and docs is run, or parsed where it says why it cannot run; see `document_blocks`."""

import logging
import re
import shlex

import pytest
from document_blocks import REPOSITORY, Page, blocks_of, command_lines, full_command, is_plain_poise, pages, parse_block  # noqa: E402, I001

DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted(REPOSITORY.glob("docs/**/*.md"))]
PAGES = list(pages(DOCUMENTS))
LONG = ("slow", "shortened")


def named(chosen):
    return [pytest.param(document, blocks, id=document.name) for document, blocks in chosen]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """An empty folder with the material beside the checkout as its neighbour; nothing that a page sets outlives it."""
    folder = tmp_path / "page"
    folder.mkdir()
    shared = REPOSITORY.parent / "shared"
    if shared.is_dir():
        (tmp_path / "shared").symlink_to(shared)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(logging.getLogger(), "handlers", list(logging.getLogger().handlers))
    return Page(folder)


def run_blocks(page: Page, blocks) -> None:
    for block in blocks:
        if "../shared" in block.code and not (page.folder.parent / "shared").is_dir():
            pytest.skip(f"{block.place} needs the material in ../shared, which is not on this machine")
        page.run(block)


QUICK = [
    (document, chosen)
    for document, blocks in PAGES
    if (chosen := [block for block in blocks if block.mark == ""])
    # What follows a long block may need what it leaves behind: such a page runs as a whole, with the slow tests.
    and not any(block.mark in LONG for block in blocks)
]
WHOLE = [
    (document, [block for block in blocks if block.mark != "parse only"])
    for document, blocks in PAGES
    if any(block.mark in LONG for block in blocks)
]
PARSED = [
    (document, chosen) for document, blocks in PAGES if (chosen := [block for block in blocks if block.mark != ""])
]


@pytest.mark.parametrize("document, blocks", named(QUICK))
def test_the_blocks_of_a_page_run(document, blocks, page):
    run_blocks(page, blocks)


@pytest.mark.slow
@pytest.mark.parametrize("document, blocks", named(WHOLE))
def test_a_page_with_long_blocks_runs_as_a_whole(document, blocks, page):
    run_blocks(page, blocks)


@pytest.mark.parametrize("document, blocks", named(PARSED))
def test_blocks_that_do_not_run_at_once_are_understood(document, blocks):
    for block in blocks:
        parse_block(block)


def test_marks_are_used_as_they_are_meant():
    for _, blocks in PAGES:
        for block in blocks:
            if block.mark == "parse only":
                assert len(block.said.split()) >= 2, f"{block.place}: parse only for what reason?"
            if block.mark == "shortened":
                (words,) = command_lines(block.code)
                shown, run = full_command(shlex.join(words)).split(), block.said.split()
                options = {word for word in shown if word.startswith("--")}
                same = run[:2] == shown[:2] and options <= set(run)
                assert same, f"{block.place}: {block.said!r} is not the block's command with smaller numbers"


def test_commands_stand_in_blocks_that_are_run():
    for document in DOCUMENTS:
        for block in blocks_of(document):
            assert block.language not in ("console", "sh", "shell", "zsh", "py"), f"{block.place}: say bash or python"
            if block.language == "":
                commands = re.findall(
                    r"^(?:\$ )?(?:poise|make|accelerate|import|from) .*", block.code, flags=re.MULTILINE
                )
                assert not commands, f"{block.place}: {commands[0]!r} stands in a block without a language"


# The reader of blocks itself.

EXAMPLE = """\
# Title

<!-- slow -->
```bash
poise ask MODEL photo.jpg "is it > 3 ?" \\
    --tags "dog:0.9"  # one
```

```python
x = 1
```

<!-- parse only: needs a GPU -->
```bash
CUDA=1 accelerate launch -m poise sft --config demo --lora.r 4
```
```text
not run
```
"""


def test_blocks_are_found_with_their_marks(tmp_path):
    document = tmp_path / "page.md"
    document.write_text(EXAMPLE)
    slow, plain, parsed, text = blocks_of(document)
    assert (slow.mark, slow.line, slow.language) == ("slow", 5, "bash")
    assert command_lines(slow.code) == [["poise", "ask", "MODEL", "photo.jpg", "is it > 3 ?", "--tags", "dog:0.9"]]
    assert (plain.mark, plain.language, plain.code, plain.line) == ("", "python", "x = 1\n", 10)
    assert (parsed.mark, parsed.said) == ("parse only", "needs a GPU")
    assert text.language == "text" and not text.executed
    parse_block(parsed)


@pytest.mark.parametrize(
    "code, plain",
    [
        ("poise --help\n", True),
        ('poise ask M p.jpg "what > is ?" --tags "a:1"  # | say\n', True),
        ("poise evaluate M --json > out.json\n", False),
        ("poise --help | head\n", False),
        ("ls\npoise --help\n", False),
        ("cd x && poise --help\n", False),
    ],
)
def test_only_plain_commands_run_without_a_shell(code, plain):
    assert is_plain_poise(code) is plain


@pytest.mark.parametrize(
    "code",
    ["poise nonsense\n", "poise ask --no-such-option\n", "poise sft --no_such_field 3\n", "poise ask only-a-model\n"],
)
def test_a_command_that_does_not_exist_is_found(code, tmp_path):
    document = tmp_path / "page.md"
    document.write_text(f"<!-- parse only: an example -->\n```bash\n{code}```\n")
    with pytest.raises((AssertionError, ValueError)):
        parse_block(blocks_of(document)[0])


def test_a_block_that_fails_fails_the_test(tmp_path, page):
    document = tmp_path / "page.md"
    document.write_text(
        "```python\nx = 1\n```\n```python\nassert x == 2\n```\n```bash\nfalse\n```\n```bash\npoise ask\n```\n"
    )
    first, second, third, fourth = blocks_of(document)
    page.run(first)
    with pytest.raises(AssertionError) as failed:
        page.run(second)
    assert failed.traceback[-1].lineno + 1 == 5  # of the document
    for block in (third, fourth):
        with pytest.raises(AssertionError, match="page.md:"):
            page.run(block)
