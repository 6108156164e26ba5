"""Predictions as JSON lines that grow while a model is evaluated: an interrupted run goes on where it stopped."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch

Row = dict[str, Any]


class PredictionLog:
    """`predictions.jsonl` in a folder, one row with an `id` per sample, beside `run.json` that says whose they are.

    Used as a context manager; `rows` holds what an earlier, interrupted run of the same settings left there.

    Args:
        folder (`str` or `os.PathLike`): is made if it does not exist.
        settings (`Mapping`): everything that the predictions depend on; JSON values.
        restart (`bool`, *optional*, defaults to `False`): forget what is there.

    Raises:
        ValueError: the folder holds predictions made with other settings, or `folder` is a file.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any], restart: bool = False):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"output_dir={str(folder)!r} is a file; name a folder.")
        self.path = self.folder / "predictions.jsonl"
        self.settings = json.loads(json.dumps(settings))
        self.rows: dict[str, Row] = {}
        self._file: TextIO | None = None
        if self.path.is_file() and not restart:
            self._check_settings()
            self._read()
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            write_whole(self.folder / "run.json", json.dumps(self.settings, indent=2, sort_keys=True) + "\n")

    def _check_settings(self) -> None:
        file = self.folder / "run.json"
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        differing = [name for name in {**earlier, **self.settings} if earlier.get(name) != self.settings.get(name)]
        if differing:
            name = sorted(differing)[0]
            raise ValueError(
                f"output_dir={str(self.folder)!r} holds predictions made with {name}={earlier.get(name)!r}, now it is "
                f"{self.settings.get(name)!r}: name another folder, or restart to replace them."
            )

    def _read(self) -> None:
        kept = 0
        with open(self.path, "rb") as file:
            for line in file:
                # A run that was killed may have left half a line; everything before it is whole.
                if not line.endswith(b"\n"):
                    break
                row = json.loads(line)
                row.pop("scores", None)
                self.rows[row["id"]] = row
                kept += len(line)
        os.truncate(self.path, kept)

    def __enter__(self) -> "PredictionLog":
        self._file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, rows: Iterable[Row]) -> None:
        """Adds rows and hands them to the operating system, so that a killed process does not lose them."""
        assert self._file is not None, "append is for use inside `with PredictionLog(...)`"
        for row in rows:
            self.rows[row["id"]] = row
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Replaces the file by `rows` (the predictions with their scores), all at once.

        Predictions for records that were left out this time (a smaller limit) stay, behind them and without scores.
        """
        scored = {row["id"]: row for row in rows}
        left_out = [row for row in self.rows.values() if row["id"] not in scored]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (*scored.values(), *left_out)]
        write_whole(self.path, "".join(lines))


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is never seen half-written."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Tells one set of weights from another by the first values of every parameter; cheap for any size."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta":  # offloaded weights are elsewhere
            digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
