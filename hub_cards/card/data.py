"""What a model card is made from, as JSON beside the run (`card_data.json`).

A training callback fills in how the model came to be, evaluators' tables are added as rows. Nothing in it is required:
a section without data says so in the card.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...evaluation.intervals import Score, is_bound
from ...evaluation.whole_files import write_whole
from ...processing.records.json_lines import read_json

SCHEMA = 1
CARD_DATA_FILE = "card_data.json"
ROW_FIELDS = ("condition", "metric", "value", "low", "high", "n", "dataset", "benchmark")
TABLES = ("evaluation", "robustness", "dominance")
BENCHMARK = re.compile(r"[\w.-]+/[\w.-]+#[\w.-]+")


@dataclasses.dataclass
class EvaluationRow:
    """
    One measured number.

    Args:
        condition (`str`): under which it was measured: "clean", "image blank", "prior broken" ...
        metric (`str`): such as "vqa_accuracy".
        value (`float`)
        low, high (`float`, *optional*): bounds of its 95 % interval.
        n (`int`, *optional*): samples behind it.
        dataset (`str`, *optional*): data set and split.
        benchmark (`str`, *optional*): `owner/dataset#task` of a benchmark that is registered on the Hub.

    Raises:
        ValueError: no condition or metric, a value that is no finite number, or bounds that are not in order.

    Examples:
        >>> EvaluationRow("clean", "vqa_accuracy", 0.51, low=0.47, high=0.55, n=1000, dataset="my questions").value
        0.51
    """

    condition: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    dataset: str | None = None
    benchmark: str | None = None

    def __post_init__(self):
        if not self.condition or not self.metric:
            raise ValueError(f"evaluation row {self}: condition and metric must be named")
        if self.benchmark is not None and not BENCHMARK.fullmatch(self.benchmark):
            raise ValueError(
                f"evaluation row {self.condition!r}: benchmark={self.benchmark!r} must be owner/dataset#task"
            )
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            if isinstance(number, bool) or not isinstance(number, int | float) or math.isinf(number):
                raise ValueError(f"evaluation row {self.condition!r}: {name}={number!r} must be a finite number")
        if math.isnan(self.value):
            raise ValueError(f"evaluation row {self.condition!r}: value is NaN; leave the row out")
        # A bootstrap of one sample has no bounds.
        self.low, self.high = (None if x is None or math.isnan(x) else x for x in (self.low, self.high))
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"evaluation row {self.condition!r}: low={self.low} is above high={self.high}")

    @property
    def score(self) -> Score:
        """The number with its interval."""
        return Score(self.value, self.low, self.high)


@dataclasses.dataclass
class CardData:
    """
    The schema of `card_data.json`; every field is optional.

    Args:
        model_name (`str`): title of the card; the repository's name by default.
        repository (`str`): `user/name` that the card's code names.
        license (`str`): licence identifier of the weights, such as "apache-2.0".
        language (`list[str]`): codes of the languages it was trained on.
        datasets (`list[dict]`): `{"name", "hub_id", "split", "records", "description"}` of what it was trained on.
        recipe (`dict`): the resolved recipe.
        parameters (`dict[str, int]`): trained parameters by group, and `total`.
        steps, epochs, seconds, processes: of the training; `hardware` (`str`) it ran on.
        versions (`dict[str, str]`): library versions.
        losses, eval_losses (`list[[step, loss]]`)
        evaluation, robustness, dominance (`list[EvaluationRow]`): tables of the three sections.
        verdict (`list[str]`): sentences that say what the dominance table means.
        backbone_licenses (`dict[str, str]`): licence of each backbone by Hub id.
        limitations (`list[str]`): sentences that join the section on limitations.

    Examples:
        >>> card_data = CardData(license="apache-2.0", language=["en"])
        >>> card_data.add_metrics({"vqa_accuracy": 0.51, "vqa_samples": 1000}, dataset="my questions")
        >>> card_data.evaluation[0].n
        1000
    """

    model_name: str | None = None
    repository: str | None = None
    license: str | None = None
    language: list[str] = dataclasses.field(default_factory=list)
    datasets: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    recipe: dict[str, Any] | None = None
    parameters: dict[str, int] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    processes: int | None = None
    hardware: str | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    losses: list[list[float]] = dataclasses.field(default_factory=list)
    eval_losses: list[list[float]] = dataclasses.field(default_factory=list)
    evaluation: list[EvaluationRow] = dataclasses.field(default_factory=list)
    robustness: list[EvaluationRow] = dataclasses.field(default_factory=list)
    dominance: list[EvaluationRow] = dataclasses.field(default_factory=list)
    verdict: list[str] = dataclasses.field(default_factory=list)
    backbone_licenses: dict[str, str] = dataclasses.field(default_factory=dict)
    limitations: list[str] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON; a reader never sees half a file."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(Path(path), text + "\n")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "card data") -> "CardData":
        """
        Raises:
            ValueError: another schema, an unknown field, or a bad row; the message begins with `source`.
        """
        content = dict(content)
        schema = content.pop("schema", SCHEMA)
        if schema != SCHEMA:
            raise ValueError(f"{source}: schema {schema!r} is not {SCHEMA}: it was written by another version of Poise")
        unknown = set(content) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"{source}: field {sorted(unknown)[0]!r} is not known")
        for table in TABLES:
            content[table] = rows_from(content.get(table, []), f"{source}: {table}")
        return cls(**content)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "CardData":
        """
        Raises:
            OSError: the file cannot be read.
            ValueError: it is not valid; the message names the file and what is wrong.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected an object, found {type(content).__name__}")
        return cls.from_dict(content, str(path))

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The three tables as plain rows, which [`add_evaluation_file`] reads."""
        return {name: [dataclasses.asdict(row) for row in getattr(self, name)] for name in TABLES}

    def drop_repetitions(self) -> None:
        """Of rows that say the same of the same (two files may hold them) keep the first."""
        for name in TABLES:
            rows = {dataclasses.astuple(row): row for row in reversed(getattr(self, name))}
            setattr(self, name, list(reversed(rows.values())))

    def add_conditions(self, rows: Iterable[Mapping[str, Any]], dataset: str = "scenes") -> None:
        """
        Add a table of conditions as `evaluate_conditions` makes it.

        Sound input goes under evaluation; everything goes under robustness, sound input first, for comparison; input
        whose colours contradict the prior goes under dominance too.
        """
        for row in rows:
            made = EvaluationRow(
                row["condition"], "vqa_accuracy", row["accuracy"], row["low"], row["high"], row["n"], dataset
            )
            self.robustness.append(made)
            if row.get("stream", "none") == "none":
                (self.dominance if "prior" in row["condition"] else self.evaluation).append(made)
            for name in ("image_weight", "text_weight"):
                if row.get(name) is not None:
                    self.robustness.append(
                        EvaluationRow(row["condition"], f"router {name}", row[name], n=row["n"], dataset=dataset)
                    )

    def add_metrics(self, metrics: Mapping[str, float], condition: str = "clean", dataset: str | None = None) -> None:
        """
        Add the flat dict of an evaluator: `NAME`, with `NAME_low` and `NAME_high` where there is an interval,
        `NAME/PART` for a part of the data, and `TASK_samples`.
        """
        samples = {name.removesuffix("_samples"): value for name, value in metrics.items() if name.endswith("_samples")}
        for name, value in metrics.items():
            if is_bound(name, metrics) or name.endswith("_samples"):
                continue
            metric, _, part = name.partition("/")
            count = next((n for task, n in samples.items() if name.startswith(f"{task}_")), None)
            n = None if count is None or part else int(count)  # how many samples a part has is not said
            score = Score.read(metrics, name)
            where = ", ".join(filter(None, (part, "" if condition == "clean" else condition))) or condition
            self.evaluation.append(EvaluationRow(where, metric, value, score.low, score.high, n, dataset))


def rows_from(rows: Sequence[Mapping[str, Any] | EvaluationRow], source: str = "rows") -> list[EvaluationRow]:
    """
    Rows from plain dicts with the fields of [`EvaluationRow`].

    Raises:
        ValueError: a field is missing, unknown or bad; the message begins with `source` and names the row.
    """
    made = []
    for number, row in enumerate(rows):
        if isinstance(row, EvaluationRow):
            made.append(row)
            continue
        try:
            made.append(EvaluationRow(**row))
        except TypeError as error:
            found = ", ".join(map(str, row)) if isinstance(row, Mapping) else repr(row)
            raise ValueError(
                f"{source}[{number}]: expected the fields {', '.join(ROW_FIELDS)}, found {found}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{source}[{number}]: {error}") from error
    return made


def add_evaluation_file(card_data: CardData, path: str | os.PathLike, router_type: str | None = None) -> None:
    """
    Add what an evaluation wrote: `metrics.json` of `poise evaluate`, `results.json` of `poise demo` (the rows of
    `router_type`), `robustness.json` of `poise robustness`, `diagnosis.json` of `poise diagnose`, or a list of rows or
    an object of the tables `evaluation`, `robustness`, `dominance`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is none of these.
    """
    content = read_json(Path(path))
    if isinstance(content, list):
        card_data.evaluation += rows_from(content, str(path))
    elif isinstance(content, dict) and isinstance(content.get("metrics"), dict):
        dataset, tagger = content.get("data"), content.get("tagger")
        # Files are named without the folders that they lay in.
        condition = "clean" if tagger is None else f"tags by {os.path.basename(os.path.normpath(tagger))}"
        before = len(card_data.evaluation)
        card_data.add_metrics(content["metrics"], condition, None if dataset is None else os.path.basename(dataset))
        for row in card_data.evaluation[before:]:
            if row.condition == condition and row.metric == content.get("primary_metric"):
                row.benchmark = content.get("benchmark")
    elif isinstance(content, dict) and isinstance(content.get("rows"), dict):
        if router_type not in content["rows"]:
            known = ", ".join(content["rows"])
            raise ValueError(f"{path}: no rows for router_type={router_type!r}; it holds {known}")
        card_data.add_conditions(content["rows"][router_type])
    elif isinstance(content, dict) and set(content) & set(TABLES):
        for table in TABLES:
            getattr(card_data, table).extend(rows_from(content.get(table, []), f"{path}: {table}"))
        card_data.verdict += [str(sentence) for sentence in content.get("verdict", [])]
    else:
        raise ValueError(
            f"{path}: neither scores of `poise evaluate`, nor results of `poise demo`, nor rows of "
            f"{', '.join(ROW_FIELDS)}"
        )
