"""One shard of a feature cache on disk: a safetensors file that appears whole or not at all, and proves what it holds.

The file's own header carries whose rows these are and a checksum of every byte of every tensor. A shard of another
cache, a torn one and one with a flipped bit are told from a good one by reading it.
"""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from poise.training.written_aside import disk_full, is_disk_full


class DamagedShard(Exception):
    """A shard file that is not what its name says; the message tells why."""


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    """Hash of names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_shard(path: Path, tensors: dict[str, torch.Tensor], identity: str) -> None:
    """
    Write aside, flush to the disk, rename: whoever sees `path` sees all of it. One writer at a time.

    Raises:
        DiskFull: there is no room; the message says how much is missing.
    """
    aside = path.with_suffix(".partial")
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            os.fspath(aside),
            metadata={"identity": identity, "checksum": checksum(tensors)},
        )
        with aside.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        aside.unlink(missing_ok=True)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise disk_full(path, size, "the finished files of the cache are kept: make room and start again") from error
    aside.replace(path)


def read_shard(path: Path, identity: str, verify: bool = False) -> dict[str, torch.Tensor]:
    """
    The tensors of a shard, mapped into memory: nothing is read before it is used.

    Args:
        path (`Path`): the file.
        identity (`str`): what it must say it is.
        verify (`bool`, *optional*, defaults to `False`): read everything and compare the checksum.

    Raises:
        DamagedShard: the file is missing, torn, of another cache, or not what was written.
    """
    if not path.is_file():
        raise DamagedShard("missing")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            written = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedShard(f"unreadable ({error})") from error
    if written.get("identity") != identity:
        raise DamagedShard("of another cache")
    if verify and written.get("checksum") != checksum(tensors):
        raise DamagedShard("its checksum is wrong")
    return tensors
