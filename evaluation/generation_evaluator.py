"""Generates an answer to every task record and scores the answers by their task.

Log-likelihood of given answers under a model: for multiple choice, and for weighing evidence without sampling.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer

from ..modeling.contrast_inputs import image_token
from ..processing.batching.collators import IGNORED, GenerationCollator, TrainingCollator
from ..processing.prompts import Prompts, images_of
from .chat_collator import ChatCollator, chat_log_likelihoods
from .decoding import Decoding, without_prompts
from .evaluator import Evaluator, Record, Row
from .metrics.vqa_answers import normalize_answer
from .task_scores import TaskScorer, primary_score


@torch.no_grad()
def answer_log_likelihoods(
    model: Any, collator: TrainingCollator, records: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> tuple[list[float], list[int]]:
    """Summed log-likelihood of one answer per record, its end-of-text token included.

    Args:
        model (`PoiseForConditionalGeneration`): in evaluation mode.
        collator ([`TrainingCollator`]): made without `max_length`, which would cut answers.
        records: task records with their images and tags; their own answers are not read.
        answers (`Sequence[str]`): one per record.

    Returns:
        `tuple[list[float], list[int]]`: log-likelihoods in nats, and how many tokens each sums over.
    """
    asked = [{**record, "task": "vqa", "answers": [answer]} for record, answer in zip(records, answers, strict=True)]
    inputs = collator(asked).to(model.device)
    labels = inputs.pop("labels")  # (B, T)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)  # (B, T)
        logits = model(**inputs).logits  # (B, T, V)
    else:
        logits, labels = model(**inputs).logits[:, :-1], labels[:, 1:]  # (B, T - 1, V), (B, T - 1)
    counted = labels != IGNORED  # (B, T)
    # Only the answers' positions are normalized: a vocabulary of 150,000 words over a whole prompt is gigabytes.
    losses = torch.nn.functional.cross_entropy(logits[counted].float(), labels[counted], reduction="none")  # (tokens,)
    sums = torch.zeros(labels.shape, dtype=losses.dtype, device=losses.device)  # (B, T)
    sums[counted] = -losses
    return sums.sum(-1).tolist(), counted.sum(-1).tolist()


logger = logging.getLogger(__name__)

# What a user may ask for; the last four are ways to look at vqa records.
TASKS = ("caption", "vqa", "grounding", "pope", "multiple_choice", "hallusionbench", "mmstar")
# Longest answers in tokens. A spoken box is four numbers; word-level tokenizers spell their digits.
MAX_NEW_TOKENS = {"caption": 48, "vqa": 16, "grounding": 24, "pope": 8, "hallusionbench": 16, "mmstar": 8}


@dataclass(eq=False)
class GenerationEvaluator(Evaluator):
    """Greedy answers to task records; every task scored by its own metrics, with bootstrap intervals.

    | task | scored by |
    |---|---|
    | `caption` | CIDEr-D, BLEU-1..4, ROUGE-L |
    | `vqa` | VQA accuracy (of `metadata["answer_scores"]`, answer -> score, where given) |
    | `grounding` | accuracy at IoU thresholds, mean IoU, share of answers without a box |
    | `pope` | vqa records answered yes or no: F1, accuracy, precision, recall, share of yes |
    | `hallusionbench` | vqa records of that benchmark: aAcc, and qAcc and fAcc of whole questions and figures |
    | `mmstar` | vqa records of that benchmark: accuracy of the letter that the answer names |
    | `multiple_choice` | vqa records with `metadata["choices"]` and `["correct_choice_idx"]`: highest log-likelihood |

    Keys of the result are `TASK_SCORE`, `TASK_SCORE_low` and `_high` for the interval, `TASK_samples`, and with
    `group_by` `TASK_PRIMARY/GROUP`. The primary metric is the task's, or `primary_mean` over the tasks of the records.

    Args:
        task (`str`, *optional*): one of `TASKS`; records of other tasks are skipped. By default every record is
            scored by the task it names.
        max_new_tokens (`int`, *optional*): longest answer; by default what the task needs.
        thresholds (`Sequence[float]`, *optional*, defaults to `(0.1, 0.5, 0.75)`): IoU values of grounding.
        group_by (`str`, *optional*): a field of `metadata` by which the primary score is also given.
        cluster_by (`str`, *optional*, defaults to `"image_id"`): a field of `metadata` that says which records belong
            together, such as the questions about one image; the bootstrap draws them together.
        prompts ([`Prompts`], *optional*): the instructions around captions and expressions.
        max_prompt_length (`int`, *optional*): longer prompts lose text.
        generation (`Mapping`, *optional*): more arguments of `generate`, such as `{"num_beams": 3}`.
        decoding ([`Decoding`], *optional*): a decoding-time method; greedy by default.
        tag_words (`bool`, *optional*, defaults to `True`): for a model without a tag stream, write a record's tags into
            its question; otherwise they are left out.
        tagger (`str`, *optional*): who gave the records their tags, where it was not their source; only noted, so that
            predictions from other tags are not taken up again.
        resamples, confidence, seed (*optional*): of the bootstrap, see [`bootstrap_interval`].
        **options: of [`Evaluator`].

    Raises:
        ValueError: an unknown task.
    """

    depends_on: ClassVar[tuple[str, ...]] = ("task", "max_new_tokens", "max_prompt_length", "generation")

    task: str | None = None
    _: KW_ONLY
    max_new_tokens: int | None = None
    thresholds: Sequence[float] = (0.1, 0.5, 0.75)
    group_by: str | None = None
    cluster_by: str = "image_id"
    prompts: Prompts = Prompts()
    max_prompt_length: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    decoding: Decoding = Decoding()
    tag_words: bool = True
    tagger: str | None = None
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task={self.task!r} is not known: choose one of {', '.join(TASKS)}.")
        self.prompts, self.decoding = self.prompts or Prompts(), self.decoding or Decoding()
        self.generation = dict(self.generation or {})
        self._tag_tokenizer: Any = None
        if self.decoding.name != "greedy" and self.generation.get("num_beams", 1) != 1:
            raise ValueError(
                f"num_beams={self.generation['num_beams']}: decoding {self.decoding.name!r} is greedy, with one beam."
            )
        self.scorer = TaskScorer(tuple(self.thresholds), self.resamples, self.confidence, self.seed)

    @property
    def primary_metric(self) -> str:  # type: ignore[override]
        return f"{self.task}_{primary_score(self.task, self.scorer.thresholds)}" if self.task else "primary_mean"

    def describe(self) -> str:
        return self.task or "tasks"

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "prompts": vars(self.prompts),
            **({} if self.tagger is None else {"tagger": self.tagger}),
            **({} if self.decoding.name == "greedy" else {"decoding": self.decoding.describe()}),
            **({} if self.tag_words else {"tag_words": False}),
        }

    def row(self, record: Record) -> Row | None:
        metadata = record.get("metadata") or {}
        task = self._task_of(record, metadata)
        if task is None:
            return None
        row: Row = {"id": str(record["id"]), "task": task, "question": self.prompts.question(record)}
        if task == "caption":
            row["captions"] = needed_field(record, "captions")
        elif task == "grounding":
            image = record["image"]
            if not isinstance(image, Image.Image):
                raise ValueError(f"record {record['id']!r}: a box needs its image, whose size it is relative to.")
            row |= {"bbox": needed_field(record, "bbox"), "width": image.width, "height": image.height}
        else:
            row["answers"] = needed_field(record, "answers")
            if metadata.get("answer_scores"):
                row["answer_scores"] = dict(metadata["answer_scores"])
        if task == "hallusionbench":
            keys = ("category", "subcategory", "set_id", "question_id")
            row["asked"] = "-".join(metadata[key] for key in keys)
            row["figure"] = metadata["image_id"] if metadata["has_figure"] else None
        if task == "multiple_choice":
            row |= {"choices": list(metadata["choices"]), "correct_choice_idx": int(metadata["correct_choice_idx"])}
        if self.cluster_by in metadata:
            row["group"] = metadata[self.cluster_by]
        if self.group_by is not None:
            row["by"] = metadata.get(self.group_by)
        return row

    def _task_of(self, record: Record, metadata: Mapping[str, Any]) -> str | None:
        task = str(record["task"])
        if self.task in ("pope", "multiple_choice", "hallusionbench", "mmstar"):
            if task != "vqa":
                return None
            if self.task in ("hallusionbench", "mmstar"):
                return self.task if metadata.get("source") == self.task else None
            if self.task == "multiple_choice":
                return self.task if metadata.get("choices") else None
            answers = {normalize_answer(answer) for answer in needed_field(record, "answers")}
            return self.task if answers in ({"yes"}, {"no"}) else None
        return task if self.task in (None, task) else None

    def batch_key(self, row: Row) -> str:
        return str(row["task"])

    def predict(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        if "image" not in model.input_modalities:
            raise ValueError(
                f"model={type(model).__name__} takes {'/'.join(model.input_modalities)}, no images: name an "
                "image-text-to-text model."
            )
        task = self.batch_key(rows[0])
        if task == "multiple_choice":
            self._weigh_choices(model, processor, records, rows)
        else:
            self._generate(model, processor, records, rows, self.max_new_tokens or MAX_NEW_TOKENS[task])

    def collator(self, model: Any, processor: Any) -> Any:
        """What makes prompts of records for this model: its tags a stream of their own, or words, or left out."""
        if reads_tags(processor):
            encoder_decoder = model.config.is_encoder_decoder
            return GenerationCollator(processor, self.max_prompt_length, encoder_decoder, self.prompts)
        if has_router(model):
            if self._tag_tokenizer is None:
                self._tag_tokenizer = AutoTokenizer.from_pretrained(model.config.tag_encoder)
            return ChatCollator(processor, model.vlm.config, self.prompts, tag_tokenizer=self._tag_tokenizer)
        return ChatCollator(processor, model.config, self.prompts, self.tag_words)

    def prompt_text(self, model: Any, processor: Any, record: Record) -> str:
        """A record's prompt as the chat template writes it, before the image's placeholders are repeated."""
        if not reads_tags(processor):
            return self.collator(model, processor).prompt_text(record)
        chat = self.prompts.messages({**record, "image": None})
        chat[0]["content"][:0] = [{"type": "image"} for _ in images_of(record)]
        text: str = processor.apply_chat_template([chat], add_generation_prompt=True)[0]
        return text

    def _generate(
        self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row], max_new_tokens: int
    ) -> None:
        settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens, **self.generation}
        if not reads_tags(processor):
            settings |= _settings_of(model, processor)
        collator = self.collator(model, processor)
        tokens, inputs = self.decoding.generate(model, processor, collator, records, **settings)  # (B, T)
        tokens = without_prompts(model, inputs["input_ids"], tokens)  # (B, T_answer)
        tokenizer = getattr(processor, "tokenizer", processor)
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        ends = _end_tokens(model, tokenizer)
        for row, text, answer in zip(rows, texts, tokens.tolist(), strict=True):
            row["prediction"] = text.strip()
            row["finished"] = len(answer) < max_new_tokens or not ends.isdisjoint(answer)

    def _weigh_choices(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        if self.decoding.name != "greedy":
            raise ValueError(
                f"decoding={self.decoding.name!r}: multiple_choice compares likelihoods, nothing is decoded; let the "
                "model answer freely (--task vqa)."
            )
        if reads_tags(processor):
            collator: Any = TrainingCollator(
                processor,
                is_encoder_decoder=model.config.is_encoder_decoder,
                prompts=self.prompts,
            )
            likelihoods_of = answer_log_likelihoods
        else:
            collator, likelihoods_of = self.collator(model, processor), chat_log_likelihoods
        pairs = [(i, choice) for i, row in enumerate(rows) for choice in row["choices"]]
        for row in rows:
            row |= {"log_likelihoods": [], "num_tokens": []}
        for first in range(0, len(pairs), self.batch_size):
            part = pairs[first : first + self.batch_size]
            likelihoods, counts = likelihoods_of(
                model, collator, [records[i] for i, _ in part], [choice for _, choice in part]
            )
            for (i, _), likelihood, count in zip(part, likelihoods, counts, strict=True):
                rows[i]["log_likelihoods"].append(likelihood)
                rows[i]["num_tokens"].append(count)
        for row in rows:
            row["prediction"] = row["choices"][int(np.argmax(row["log_likelihoods"]))]

    def score(self, rows: list[Row]) -> dict[str, float]:
        """Scores of rows that carry predictions, as `predictions.jsonl` holds them; needs no model."""
        metrics: dict[str, float] = {}
        primaries = []
        for task in sorted({row["task"] for row in rows}, key=TASKS.index):
            some = [row for row in rows if row["task"] == task]
            found = self.scorer(task, some)
            primary = primary_score(task, self.scorer.thresholds)
            for name, score in found.scores.items():
                metrics |= score.flat(f"{task}_{name}")
            metrics[f"{task}_samples"] = float(len(some))
            primaries.append(metrics[f"{task}_{primary}"])
            for i, row in enumerate(some):
                row["scores"] = {name: float(values[i]) for name, values in found.per_sample.items()}
            metrics |= self._by_group(task, primary, some)
        if self.task is None:
            metrics["primary_mean"] = float(np.mean(primaries))
        return metrics

    def _by_group(self, task: str, primary: str, rows: Sequence[Row]) -> dict[str, float]:
        if self.group_by is None:
            return {}
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if row.get("by") is not None:
                groups.setdefault(str(row["by"]), []).append(row)
        result = {}
        for group, some in sorted(groups.items()):
            # The mean of the samples' scores where there are any: CIDEr-D with the idf of a part compares to nothing.
            per_sample = [row["scores"].get(primary) for row in some]
            if None in per_sample:
                result[f"{task}_{primary}/{group}"] = self.scorer(task, some).scores[primary].value
            else:
                result[f"{task}_{primary}/{group}"] = float(np.mean(per_sample))
        return result


def needed_field(record: Record, field: str) -> list[Any]:
    """A list that a record must bring to be scored; raises a `ValueError` if it is missing or empty."""
    values = record.get(field)
    if not values:
        raise ValueError(
            f"record {record['id']!r} has no {field}, so nothing to score against: add them or leave it out."
        )
    return list(values)


def reads_tags(processor: Any) -> bool:
    """Whether a processor is Poise's, from this package or from a repository's own code, with a stream for tags."""
    return hasattr(processor, "uncut_token_ids")


def has_router(model: Any) -> bool:
    """Whether a model is a [`RoutedVlm`], from this package or from a repository's own code."""
    return getattr(model.config, "model_type", None) == "poise_vlm_router"


def _settings_of(model: Any, processor: Any) -> dict[str, Any]:
    """What another family's `generate` must be told: its padding, and that an image token is never an answer."""
    model = model.vlm if has_router(model) else model
    settings: dict[str, Any] = {"pad_token_id": getattr(processor, "tokenizer", processor).pad_token_id}
    token, size = image_token(model.config), model.config.get_text_config().vocab_size
    if token is not None and token < size:
        settings["suppress_tokens"] = sorted({*(model.generation_config.suppress_tokens or ()), token})
    return settings


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Ids after which an answer is over."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    return {*ends, tokenizer.eos_token_id} - {None}
