"""Folders that appear whole or not at all: written aside, flushed to the disk, renamed.

    run/checkpoint-20                 complete
    run/.saving/checkpoint-40         being written; nothing looks for a checkpoint there

A process that dies while it writes leaves nothing but a rest below `.saving`, which the next one clears away.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

ASIDE = ".saving"
FORMER = "former-"  # a folder on its way out, while its successor is not in yet
REMOVED = "removed-"
MANIFEST = "checkpoint_files.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch and safetensors write from their own languages, and tell what went wrong only in words.
_FULL_WORDS = re.compile(
    r"os error (28|122|27)\b|no space left|PytorchStreamWriter failed|unexpected pos|iostream error", re.I
)


class DiskFull(OSError):
    """A folder could not be written; what stood there before is untouched. The message says how much is missing."""


def clear_aside(parent: Path) -> None:
    """Remove what a killed process left, and put back a folder that died between going out and being replaced."""
    aside = parent / ASIDE
    if not aside.is_dir():
        return
    for former in aside.glob(f"{FORMER}*"):
        place = parent / former.name.removeprefix(FORMER)
        if not place.exists():
            former.rename(place)
    shutil.rmtree(aside)


def seal(folder: Path) -> None:
    """Note every file with its size, and flush all of it to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / MANIFEST).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
    for path in (*files, folder / MANIFEST, folder):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def missing_files(folder: Path) -> list[str]:
    """Files of a sealed folder that are gone or of another size; empty for a folder that nobody sealed."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return []
    try:
        sizes = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return [MANIFEST]
    return [
        name for name, size in sizes.items() if not (folder / name).is_file() or (folder / name).stat().st_size != size
    ]


def move_into_place(written: Path, folder: Path) -> None:
    """Rename a finished folder to its name; one that has that name steps aside first, and back if all ends here."""
    former = written.parent / (FORMER + folder.name)
    if folder.exists():
        folder.rename(former)
    written.rename(folder)
    _flush(folder.parent)
    if former.exists():
        shutil.rmtree(former)


def remove(folder: Path) -> None:
    """Delete a folder that others may be looking at: first it is gone, then its files."""
    aside = folder.parent / ASIDE
    aside.mkdir(exist_ok=True)
    doomed = aside / (REMOVED + folder.name)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def size_of(folder: Path) -> int:
    """Bytes in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def room_for(folder: Path, needed: int, advice: str) -> Iterator[None]:
    """
    Around the writing of `folder` (below `ASIDE` or not): a full disk becomes one line that says how much is missing.

    Args:
        folder (`Path`): what is written; removed if the disk is full.
        needed (`int`): bytes it is expected to take; 0 if nobody knows.
        advice (`str`): what is untouched, and how to go on.

    Raises:
        DiskFull: there is less room than `needed`, noticed before writing; or writing ended with a full disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if _free(folder.parent) < needed:
        raise disk_full(folder, needed, advice)
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        needed = max(needed, size_of(folder) if folder.is_dir() else 0)
        shutil.rmtree(folder, ignore_errors=True)
        raise disk_full(folder, needed, advice) from error


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """
    Around the writing of a run's finished model: gives the folder to write into, which then becomes `folder`, whole.

    Raises:
        DiskFull: there is no room; what stood there before is untouched.
    """
    clear_aside(folder.parent)
    written = folder.parent / ASIDE / folder.name
    with room_for(written, 0, f"the checkpoints in {folder.parent} are untouched: make room and go on with --resume"):
        written.mkdir(parents=True)
        yield written
        move_into_place(written, folder)
    clear_aside(folder.parent)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of Python, torch or safetensors means that there is no room (a quota counts as well)."""
    return getattr(error, "errno", None) in _FULL or bool(_FULL_WORDS.search(str(error)))


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def disk_full(folder: Path, needed: int, advice: str) -> DiskFull:
    """The error for what could not be written into `folder.parent`, with what is missing."""
    free = _free(folder.parent)
    missing = needed - free
    # A quota or a limit on file sizes stops a write although the disk itself has room.
    lack = f"{_amount(missing)} are missing" if missing > 0 else "a quota or a limit on file sizes stopped it"
    return DiskFull(
        f"{folder.name} could not be saved, the disk is full: it needs about {_amount(needed)}, {_amount(free)} are "
        f"free in {folder.parent.parent if folder.parent.name == ASIDE else folder.parent}, {lack}; {advice}"
    )


def _amount(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
