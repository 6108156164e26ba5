"""Base class of all evaluators: model, processor and records in, a flat dict out; streamed, resumable.

Predictions as JSON lines that grow while a model is evaluated: an interrupted run goes on where it stopped.
"""

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TextIO

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .model_errors import model_errors
from .whole_files import failures_named, write_whole

Row = dict[str, Any]


# Settings that stand in run.json as digests of much.
DIGESTS = {"weights": "weights of the model", "replacement": "replaced tokens (zero, or the mean of a calibration set)"}


class PredictionLog:
    """`predictions.jsonl` in a folder, one row with an `id` per sample, beside `run.json` that says whose they are.

    Used as a context manager; `rows` holds what an earlier, interrupted run of the same settings left there.

    Args:
        folder (`str` or `os.PathLike`): is made if it does not exist.
        settings (`Mapping`): everything that the predictions depend on; JSON values.
        restart (`bool`, *optional*, defaults to `False`): forget what is there.
        process (*optional*): `(index, count)` where several processes share the work: each writes
            `predictions.INDEX.jsonl`, all of which are read at the start, and merged by `rewrite`.

    Raises:
        ValueError: the folder holds predictions made with other settings, or `folder` is a file.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: Mapping[str, Any],
        restart: bool = False,
        process: tuple[int, int] = (0, 1),
    ):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"output_dir={str(folder)!r} is a file; name a folder.")
        self.path = self.folder / "predictions.jsonl"
        index, count = process
        self._own = self.path if count == 1 else self.folder / f"predictions.{index}.jsonl"
        self.settings = json.loads(json.dumps(settings))
        self.rows: dict[str, Row] = {}
        self._file: TextIO | None = None
        if self._files() and not restart:
            self._check_settings()
            self.read()
        elif index == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in self._files():
                file.unlink()
            write_whole(self.folder / "run.json", json.dumps(self.settings, indent=2, sort_keys=True) + "\n")

    def _check_settings(self) -> None:
        file = self.folder / "run.json"
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        differing = [name for name in {**earlier, **self.settings} if earlier.get(name) != self.settings.get(name)]
        if differing:
            # What is known by a digest alone comes last, and is told in words.
            name = min(differing, key=lambda name: (name in DIGESTS, name))
            was, now = (repr(some.get(name)) for some in (earlier, self.settings))
            what = f"other {DIGESTS[name]}" if name in DIGESTS else f"{name}={was}, now it is {now}"
            raise ValueError(
                f"output_dir={str(self.folder)!r} holds predictions made with {what}: name another folder, or restart "
                "to replace them."
            )

    def _files(self) -> list[Path]:
        """The predictions, and shares that processes left whose run was stopped."""
        return [path for path in (self.path, *sorted(self.folder.glob("predictions.[0-9]*.jsonl"))) if path.is_file()]

    def read(self) -> None:
        """Takes up everything that is written."""
        for path in self._files():
            kept = 0
            with open(path, "rb") as file:
                for line in file:
                    # A run that was killed may have left half a line; everything before it is whole.
                    if not line.endswith(b"\n"):
                        break
                    row = json.loads(line)
                    row.pop("scores", None)
                    self.rows[row["id"]] = row
                    kept += len(line)
            if kept < path.stat().st_size:
                os.truncate(path, kept)

    def __enter__(self) -> "PredictionLog":
        self._file = open(self._own, "a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if not self.rows and self._own == self.path:  # nothing to go on from
            for path in (self.path, self.folder / "run.json"):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # it holds something else
                self.folder.rmdir()

    def append(self, rows: Iterable[Row]) -> None:
        """Adds rows and hands them to the operating system, so that a killed process does not lose them."""
        assert self._file is not None, "append is for use inside `with PredictionLog(...)`"
        with failures_named(self.path):
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
        for share in self._files()[1:]:
            share.unlink()


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Tells one set of weights from another by the first values of every parameter; cheap for any size."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta":  # offloaded weights are elsewhere
            digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


logger = logging.getLogger(__name__)

Record = Mapping[str, Any]


def image_group(record: Record) -> Row:
    """`{"group": ...}` for the row of a record whose metadata names its image: intervals draw its rows together."""
    metadata = record.get("metadata") or {}
    return {"group": str(metadata["image_id"])} if metadata.get("image_id") is not None else {}


def groups_of(rows: Sequence[Row]) -> list[str]:
    """What the bootstrap draws together: rows about one image, else each by itself."""
    return [str(row.get("group", row["id"])) for row in rows]


@dataclass(kw_only=True, eq=False)
class Evaluator(ABC):
    """Predicts something for every record, once, and scores all of it.

    A subclass says what a batch's rows are (`predict`) and what the rows are worth (`score`).

    Args:
        batch_size (`int`, *optional*, defaults to 16): records per forward pass.
        output_dir (*optional*): where predictions are kept; a later call with the same settings skips what is done.
        num_workers (`int`, *optional*, defaults to 0): processes that read records.
        progress (`bool`, *optional*, defaults to `True`): show a progress bar on stderr.
        restart (`bool`, *optional*, defaults to `False`): forget what is kept in `output_dir`.
        shared (`bool`, *optional*, defaults to `False`): the processes of `accelerate launch` share the batches, which
            are those of one process; they need one `output_dir`. All of them return the scores.

    Attributes:
        primary_metric (`str`): key of the returned dict that stands for all.
        greater_is_better (`bool`): of the primary metric.
        depends_on (`tuple[str, ...]`): names of attributes that predictions depend on besides the weights.
    """

    primary_metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = True
    depends_on: ClassVar[tuple[str, ...]] = ()

    batch_size: int = 16
    output_dir: str | os.PathLike | None = None
    num_workers: int = 0
    progress: bool = True
    restart: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be 1 or more.")
        self._process: Any = PartialState() if self.shared else None

    @abstractmethod
    def row(self, record: Record) -> Row | None:
        """What is known of a record before the model sees it, with its `id`; `None` for one that is not asked about."""

    @abstractmethod
    def predict(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        """Adds the model's predictions to the rows of one batch."""

    @abstractmethod
    def score(self, rows: list[Row]) -> dict[str, float]:
        """The flat dict; may add `scores` to rows."""

    def batch_key(self, row: Row) -> str:
        """Rows of different keys never share a batch, such as tasks whose answers differ in length."""
        return ""

    def settings(self) -> dict[str, Any]:
        """What predictions depend on besides the weights; a resumed run must agree."""
        return {"evaluator": type(self).__name__, **{name: getattr(self, name) for name in self.depends_on}}

    def __call__(self, model: Any, processor: Any, records: Iterable[Record]) -> dict[str, float]:
        """Evaluates.

        Args:
            model (`PreTrainedModel`): put into evaluation mode meanwhile.
            processor: made for the model.
            records (`Iterable`): task records; a map-style data set, a list, or a stream.

        Returns:
            `dict[str, float]`: scores by name.

        Raises:
            ValueError: no record to evaluate, an id that occurs twice, or an `output_dir` of another run.
        """
        rows: list[Row] = []
        was_training = model.training
        model.eval()
        try:
            with self._log(model) as log:
                finished = {} if log is None else dict(log.rows)
                for batch in self._own_batches(self._unfinished_batches(records, finished, rows)):
                    batch_records, batch_rows = [record for record, _ in batch], [row for _, row in batch]
                    with torch.no_grad(), model_errors(model):
                        self.predict(model, processor, batch_records, batch_rows)
                    if log is not None:
                        log.append(batch_rows)
        finally:
            model.train(was_training)
        if not rows:
            raise ValueError(f"records holds nothing for {self.describe()}: check the data and the task.")
        if self._several:
            self._process.wait_for_everyone()
            log.read()
            rows = [log.rows[row["id"]] for row in rows]
            self._process.wait_for_everyone()  # nobody merges before everybody has read
        metrics = self.score(rows)
        if log is not None and (not self._several or self._process.is_main_process):
            log.rewrite(rows)
        return metrics

    @property
    def _several(self) -> bool:
        """Whether other processes predict some of the batches."""
        return self._process is not None and self._process.num_processes > 1

    def _own_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Every process forms all batches, so that each is what one process alone would have predicted."""
        if not self._several:
            return batches
        return islice(batches, self._process.process_index, None, self._process.num_processes)

    def describe(self) -> str:
        """What is evaluated, for messages."""
        return type(self).__name__

    def _log(self, model: Any) -> Any:
        if self.output_dir is None:
            return nullcontext()
        settings = {**self.settings(), "weights": weights_fingerprint(model)}
        if not self._several:
            return PredictionLog(self.output_dir, settings, self.restart)
        place = (self._process.process_index, self._process.num_processes)
        with self._process.main_process_first():  # it makes the folder, or clears it
            log = PredictionLog(self.output_dir, settings, self.restart and self._process.is_main_process, place)
        self._process.wait_for_everyone()  # nobody writes before everybody has read
        return log

    def _unfinished_batches(
        self, records: Iterable[Record], finished: Mapping[str, Row], rows: list[Row]
    ) -> Iterator[list[tuple[Record, Row]]]:
        """Batches of records that have no prediction yet; meanwhile `rows` grows by every record's row, in order."""
        seen: set[str] = set()
        waiting: dict[str, list[tuple[Record, Row]]] = {}
        size = len(records) if isinstance(records, Sized) else None
        with tqdm(total=size, desc=self.describe(), unit="sample", disable=not self.progress) as bar:
            for batch in self._batches(records):
                for record in batch:
                    row = self.row(record)
                    if row is None:
                        continue
                    if row["id"] in seen:
                        raise ValueError(f"records holds the id {row['id']!r} twice: give every record its own id.")
                    seen.add(row["id"])
                    earlier = finished.get(row["id"])
                    if earlier is not None:
                        self._check_same(row, earlier)
                        row = earlier
                    else:
                        waiting.setdefault(self.batch_key(row), []).append((record, row))
                    rows.append(row)
                for key in [key for key, pairs in waiting.items() if len(pairs) >= self.batch_size]:
                    yield waiting[key][: self.batch_size]
                    waiting[key] = waiting[key][self.batch_size :]
                bar.update(len(batch))
            yield from (pairs for pairs in waiting.values() if pairs)

    def _check_same(self, row: Row, earlier: Row) -> None:
        differing = [name for name, value in row.items() if earlier.get(name) != value]
        if differing:
            raise ValueError(
                f"output_dir={str(self.output_dir)!r} holds a prediction for id {row['id']!r} whose {differing[0]} is "
                f"{earlier.get(differing[0])!r}, not {row[differing[0]]!r}: the data changed; "
                "name another folder, or restart."
            )

    def _batches(self, records: Iterable[Record]) -> Iterator[Sequence[Record]]:
        if hasattr(records, "__getitem__") and hasattr(records, "__len__"):
            return iter(DataLoader(records, batch_size=self.batch_size, collate_fn=list, num_workers=self.num_workers))
        stream = iter(records)
        return iter(lambda: list(islice(stream, self.batch_size)), [])
