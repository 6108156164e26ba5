"""The recipe of the alignment stage: what `poise align` does, section by section."""

import dataclasses
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ...modeling import PoiseDualEncoderConfig
from ...modeling.configuration_dual_encoder import TEXT_PATHS, VISION_PATHS
from ...modeling.contrastive_losses import CONTRASTIVE_LOSSES
from ...processing.records.json_lines import read_json, read_text
from ...processing.scenes.layout import COLORS, SHAPES
from ...processing.taggers import check_tagger
from ...processing.tags import check_tag
from ..feature_cache.cache import STORAGE_DTYPES
from ..recipe_loading import (
    TRAINING_DEFAULTS,
    TRAINING_FIELDS,
    Section,
    StageRecipe,
    check_scenes,
    checked,
    choice,
    floating_dtype,
    number,
    section,
    unknown_name,
)  # fmt: skip
from ..run_start import made_arguments

HEAD_FIELDS = (
    "embed_dim", "vision_feature_layer", "text_feature_layer", "vision_paths", "text_paths", "vision_prefix_tokens",
    "projector_dropout", "loss_type", "logit_scale_init_value", "logit_bias_init_value", "max_text_length",
)  # fmt: skip
HEAD_CHOICES = {"loss_type": tuple(CONTRASTIVE_LOSSES), "vision_paths": VISION_PATHS, "text_paths": TEXT_PATHS}


@section
class Model(Section):
    PASSED_ON = {field.name: field for field in dataclasses.fields(PoiseDualEncoderConfig) if field.name in HEAD_FIELDS}

    vision: str | None = None
    text: str | None = None
    dtype: str = checked("float32", floating_dtype)


@section
class Regularization(Section):
    """Of STRUCTURE the values of its published code, whose weight is 10."""

    fusemix_alpha: float | None = number(None, above=0)
    structure_weight: float = number(0.0, least=0)
    structure_warmup_steps: int = number(500, least=0)
    structure_levels: int = number(1, least=1)
    structure_temperature: float = number(0.07, above=0)


@section
class Data(Section):
    train: Any = None
    evaluation: Any = None
    image_folder: str | None = None
    scenes: Any = dataclasses.field(default_factory=dict)
    evaluation_size: int = number(500, least=1)
    caption_parts: bool = False
    feature_cache: str = "outputs/features"
    feature_dtype: str = choice("float16", tuple(STORAGE_DTYPES))
    feature_batch_size: int = number(64, least=1)


@section
class Tagger(Section):
    vocabulary: Any = None
    templates: Any = dataclasses.field(default_factory=lambda: ["a photo of a {}."])
    threshold: float = number(0.1, least=0, most=1)
    max_tags: int = number(16, least=1)


@dataclasses.dataclass
class AlignRecipe(StageRecipe):
    """
    model: `vision` and `text` (Hub id, folder, `tiny:NAME`), `dtype`, and fields of `PoiseDualEncoderConfig`.
    regularization: `fusemix_alpha` mixes pairs (see `fuse_mix`); `structure_weight`, reached over
        `structure_warmup_steps`, `structure_levels`, `structure_temperature` keep neighbourhoods (see
        `structure_regularizer`).
    data: `train` and `evaluation` ("scenes", a JSON-lines file of task records with captions, a folder with
        `train.jsonl` and `validation.jsonl`), `caption_parts` (phrases of captions are texts, too), knobs, and where
        and how frozen features are stored.
    tagger: `vocabulary` ("scenes", a list, or a file: JSON or one name a line), `templates`, `threshold`, `max_tags`.
    training: fields of `transformers.TrainingArguments`.
    """

    model: Model
    regularization: Regularization
    data: Data
    tagger: Tagger
    training: dict[str, Any]

    KEYS = {"training": TRAINING_FIELDS}
    DEFAULTS = {
        "training": {
            **TRAINING_DEFAULTS,
            "output_dir": "outputs/align",
            "learning_rate": 1e-3,  # arXiv 2409.19425, section 5
            "num_train_epochs": 15,
            "per_device_train_batch_size": 1024,
            "per_device_eval_batch_size": 1024,
            "dataloader_drop_last": True,  # a short last batch would be an easier question than the others
            "warmup_steps": 0.05,
            "weight_decay": 1e-4,
            "logging_steps": 50,
        }
    }

    def __post_init__(self) -> None:
        for part in ("vision", "text"):
            if not self.model[part]:
                raise ValueError(f"model.{part} is missing: name an encoder by Hub id, folder or tiny:NAME")
        if not self.data.train:
            raise ValueError(
                "data.train is missing: give 'scenes', a JSON-lines file or a folder (or --data on the line)"
            )
        for key, choices in HEAD_CHOICES.items():
            if key in self.head_fields and self.head_fields[key] not in choices:
                raise unknown_name(f"model.{key}=", self.head_fields[key], choices)
        # What the configuration can see without the encoders' own shapes is seen here.
        PoiseDualEncoderConfig(
            **{name: self.head_fields[name] for name in ("embed_dim", "projector_dropout") if name in self.head_fields}
        )
        check_scenes(self.data.scenes)
        self._check_evaluation()
        vocabulary = load_vocabulary(self.tagger.vocabulary)
        if vocabulary:  # what the tagger would refuse when everything is trained
            check_tagger(vocabulary, self.tagger.templates, self.tagger.threshold, self.tagger.max_tags)

    def _check_evaluation(self) -> None:
        """Own images that are evaluated on drawn scenes say nothing; most often only --data was set."""
        train, evaluation = str(self.data.train), str(self.data.evaluation)
        if evaluation.partition(":")[0] == "scenes" and train.partition(":")[0] != "scenes":
            raise ValueError(
                f"data.evaluation={evaluation!r} are drawn scenes, but data.train={train!r} is not: name held-out "
                "records of the same kind (--data.evaluation FILE), or none (--data.evaluation null)"
            )

    @property
    def head_fields(self) -> dict[str, Any]:
        """The fields of the dual encoder's configuration that the recipe writes."""
        return {name: value for name, value in self.model.passed_on.items() if value is not None}


load_align_recipe = AlignRecipe.load


def load_vocabulary(source: Any, argument: str = "tagger.vocabulary") -> list[str]:
    """
    Names of tags: a list, "scenes" (every colour with every shape), or a file: JSON, or one name a line.

    Raises:
        ValueError: no such file, no names, or none of text that can be seen; the message calls it `argument`.
    """
    if source is None:
        return []
    if source == "scenes":
        return [f"{color} {shape}" for shape in SHAPES for color in COLORS]
    if isinstance(source, str):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"{argument}={source!r} is no file: give a list of names, 'scenes' or a file")
        is_json = path.suffix == ".json"
        found = read_json(path) if is_json else [line for line in read_text(path).splitlines() if line.strip()]
        if not isinstance(found, list):
            raise ValueError(f'{argument}={source!r} is no list of names: write ["dog", "cat"], or a name a line')
    else:
        found = source
    names = list(dict.fromkeys(" ".join(str(name).split()) for name in found))
    if not names:
        raise ValueError(f"{argument}={source!r} holds no names: give at least one, or leave it out")
    for name in filter(None, names):  # of an empty one the tagger says more
        check_tag(name, argument)
    return names


def training_arguments(recipe: AlignRecipe) -> TrainingArguments:
    """
    `TrainingArguments` of a recipe.

    Raises:
        ValueError: a value that cannot be, or gradient accumulation.
    """
    args = made_arguments(TrainingArguments, {**recipe.training, "remove_unused_columns": False})
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"training.gradient_accumulation_steps={args.gradient_accumulation_steps}: a contrastive loss "
            "compares within a batch, and accumulated small ones are not a large one; raise per_device_train_batch_size"
        )
    if args.per_device_train_batch_size < 2:
        raise ValueError(
            f"training.per_device_train_batch_size={args.per_device_train_batch_size} leaves nothing to compare "
            "with: use 2 or more"
        )
    return args
