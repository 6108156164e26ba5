"""Files of results that are never seen half-written, and whose failure names them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Around the writing of a file: gives the path to write to, which then becomes `path`, or is removed.

    Raises:
        OSError: it could not be written; the error names `path`, whoever was writing.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.stem}.unfinished{path.suffix}")
    try:
        with failures_named(path):
            yield unfinished
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def failures_named(path: str | os.PathLike) -> Iterator[None]:
    """Around the writing of a file: what the operating system refuses is told with its name."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Writes a text as `whole_file`."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_figure(figure: Any, path: str | os.PathLike, dpi: int) -> None:
    """Draws a figure of matplotlib as `whole_file`."""
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=dpi)
