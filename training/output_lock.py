"""One run at a time in an output folder: a lock file that names its owner by process and host.

The file appears by an exclusive creation, which also network disks know. One whose process is gone, on the same host,
is taken over; of another host nobody can tell, so the message says which file to delete.
"""

import contextlib
import datetime
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import SoftFileLock, Timeout

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
WAIT_SECONDS = 1.0  # time enough to take a dead owner's lock over


@contextlib.contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """
    Around everything that a run does with its folder, which is made where there is none.

    Raises:
        ValueError: another process works in the folder; process, host and start of its run are named.
        OSError: the folder cannot be written.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    lock, left = SoftFileLock(path), _owner(path)
    try:
        lock.acquire(timeout=WAIT_SECONDS, poll_interval=0.1)
    except Timeout:
        owner = _owner(path) or "another process"
        raise ValueError(
            f"training.output_dir={str(folder)!r} is in use by {owner}: wait for it or name another folder; if that "
            f"run is over, delete {path}"
        ) from None
    if left is not None:
        logger.info("%s was left by %s, which is gone: taken over", path, left)
    try:
        yield
    finally:
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # a run that never began leaves no empty folder
                folder.rmdir()


def _owner(path: Path) -> str | None:
    """The owner as words: what the lock file holds is one line each of process and host."""
    try:
        process, host = path.read_text(encoding="utf-8").split("\n")[:2]
        since = datetime.datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
    except (OSError, ValueError):
        return None
    return f"process {process} on {host} since {since}"
