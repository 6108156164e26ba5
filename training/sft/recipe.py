"""The recipe of supervised fine-tuning: what `poise sft` does, section by section."""

import dataclasses
import importlib.util
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ...modeling import PoiseConfig
from ..feature_cache.cache import STORAGE_DTYPES
from ..parameter_groups import PARAMETER_GROUPS, group_settings
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
)  # fmt: skip

QUANTIZATIONS = ("none", "nf4", "int8")
CHECKED_MODULES = ("projector", "soft_prompt", "router", "adapters", "tag_encoder", "vision_tower")
# What an evaluation measures, as `training.metric_for_best_model` may name it; those with a slash belong to others.
METRICS = (
    "loss", "primary_mean", "vqa_accuracy", "caption_cider_d", "caption_rouge_l", "caption_bleu_1", "caption_bleu_2",
    "caption_bleu_3", "caption_bleu_4", "grounding_accuracy@0.1", "grounding_accuracy@0.5", "grounding_accuracy@0.75",
    "grounding_mean_iou",
)  # fmt: skip
# Fields of the configuration that a recipe does not write there: backbones by name, task-routed adapters under `lora`.
_NESTED = ("vision_config", "text_config", "tag_encoder_config", "image_token_id", "backbones", "task_adapter_rank",
           "task_adapter_scale", "task_adapter_dropout")  # fmt: skip


_INHERITED = {field.name for field in dataclasses.fields(PreTrainedConfig)}


def _no_layers(value: Any) -> None:
    if value is not None and (value == "all-linear" or not isinstance(value, str | list)):
        raise ValueError(
            "names no layers: give names of the language model's such as [q_proj, v_proj], a pattern for whole names, "
            "or null for all of its linear layers (all-linear would also take the projector's)"
        )


def _cache_folder(value: Any) -> None:
    if value is not None and not isinstance(value, bool | str):
        raise ValueError("is no folder: name one, or write true for one beside the run")
    if isinstance(value, str) and Path(value).is_file():
        raise ValueError("is a file: name a folder")


def _known_modules(value: Any) -> None:
    if any(name not in CHECKED_MODULES for name in value):
        raise ValueError(
            f"must be a list of {', '.join(CHECKED_MODULES)}: name the modules that may stay without a gradient in the "
            "first step"
        )


@section
class Model(Section):
    # What `PoiseForConditionalGeneration.from_backbones` takes beyond the backbones' names.
    PASSED_ON = {
        field.name: field for field in dataclasses.fields(PoiseConfig) if field.name not in {*_INHERITED, *_NESTED}
    }

    vision: str | None = None
    text: str | None = None
    tag_encoder: str | None = None
    dtype: str = checked("float32", floating_dtype)
    quantization: str = choice("none", QUANTIZATIONS)
    align_words: bool = False
    align_pictures: int = number(0, least=0)


@section
class Data(Section):
    train: Any = None
    evaluation: Any = None
    image_folder: str | None = None
    tagger: str | None = None
    scenes: Any = dataclasses.field(default_factory=dict)
    max_length: int | None = number(None, least=1)
    evaluation_samples: int | None = number(200, least=1)
    max_new_tokens: int | None = number(20, least=1)
    feature_cache: Any = checked(False, _cache_folder)
    feature_cache_dtype: str = choice("float32", tuple(STORAGE_DTYPES))
    packing: int | None = number(None, least=2)
    streaming: bool = False
    shuffle_buffer: int | None = number(1000, least=1)


@section
class Lora(Section):
    r: int = number(8, least=1, hint=" (lora: null for no LoRA)")
    alpha: int = number(16, least=1, hint=" (lora: null for no LoRA)")
    dropout: float = number(0.0, least=0, below=1)
    target_modules: Any = checked(None, _no_layers)


@section
class SftLora(Lora):
    use_dora: bool = False
    use_rslora: bool = False
    task_routed: bool = False


@section
class Checks(Section):
    allow_without_gradient: list[str] = checked(list, _known_modules)


@section
class EarlyStopping(Section):
    patience: int | None = number(None, least=1)
    threshold: float = number(0.0, least=0)


@dataclasses.dataclass
class Recipe(StageRecipe):
    """
    What a run does, section by section; see `training/recipes/` for written-out ones.

    model: backbones by Hub id, folder or `tiny:NAME` (the shipped ones), `dtype`, `quantization`, `align_words` (the
        soft prompt starts with the language model's words, see `ridge_initialization`), `align_pictures` (how many
        tagged images the projector is initialized from, in the same file), `PoiseConfig` fields.
    processor: `tag_words`, `max_tags`, `chat_template`, `max_pixels` (of an image, in records too; 50 million).
    data: `train` and `evaluation` ("scenes", a JSON-lines file of task records, a folder, a data set on disk or on the
        Hub; or a list of `{name, weight, split, columns}`, see `RecordSource`), `streaming` with its `shuffle_buffer`,
        `packing` (short samples in rows of so many tokens), `tagger`
        (a dual encoder's folder or a file of tags, in place of the records' own tags), `feature_cache` (a folder, or
        `true` for one beside the run: frozen towers run once, see `frozen_towers`), knobs.
    lora: rank and so on, or `None` to leave the language model untouched; `task_routed` makes two of them, see
        `modeling/task_routed_adapters.py`.
    learning_rates: by group a rate, or `{rate, weight_decay, schedule, warmup}`; a group that is not named is not
        trained.
    checks: `allow_without_gradient`, modules that may stay without a gradient in the first step.
    early_stopping: `patience` in evaluations without progress of `training.metric_for_best_model`, `threshold`.
    training: fields of `transformers.TrainingArguments`.
    """

    model: Model
    processor: dict[str, Any]
    data: Data
    lora: SftLora | None
    learning_rates: dict[str, Any]
    checks: Checks
    early_stopping: EarlyStopping
    training: dict[str, Any]

    KEYS = {
        "processor": ("tag_words", "max_tags", "chat_template", "max_pixels"),
        "learning_rates": PARAMETER_GROUPS,
        "training": TRAINING_FIELDS,
    }
    DEFAULTS = {
        "learning_rates": {"new_modules": 1e-3, "adapters": 2e-4},
        "training": {
            **TRAINING_DEFAULTS,
            "output_dir": "outputs/sft",
            "logging_steps": 50,
            "warmup_steps": 0.05,
        },
    }

    def __post_init__(self) -> None:
        self._check_backbones()
        self._check_data()
        self._check_adapters()
        if not self.learning_rates:
            raise ValueError("learning_rates is empty: nothing would be trained; name at least new_modules")
        group_settings(self.learning_rates)
        self._check_groups()
        pixels = self.processor.get("max_pixels", 1)
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1:
            raise ValueError(f"processor.max_pixels={pixels!r} must be a whole number of at least 1")
        most = self.processor.get("max_tags")
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise ValueError(f"processor.max_tags={most!r} must be a whole number of at least 1, or null")
        self._check_stopping()
        self._check_training()
        # Every contradiction that the configuration can see without the backbones' own shapes is seen here.
        PoiseConfig(**self.model.passed_on)

    def _check_backbones(self) -> None:
        model = self.model
        for name in ("vision", "text"):
            if not model[name]:
                raise ValueError(f"model.{name} is missing: name a backbone by Hub id, folder or tiny:NAME")
        if model.soft_prompt_type == "dynamic" and not model.tag_encoder:
            raise ValueError(
                "model.tag_encoder is missing, but soft_prompt_type='dynamic' reads tags: name a BERT-like encoder "
                "(tiny:tag_encoder), or set soft_prompt_type to static or none"
            )
        if model.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
            raise ImportError(
                f"model.quantization={model.quantization!r} needs bitsandbytes: pip install 'poise[quantization]', or "
                "set model.quantization=none"
            )
        layers = model.vision_feature_layer
        if not all(isinstance(layer, int) for layer in (layers if isinstance(layers, list) else [layers or 0])):
            raise ValueError(
                f"model.vision_feature_layer={layers!r} must be a whole number, or a list such as [-2, -1]"
            )

    def _check_data(self) -> None:
        if not self.data.train:
            raise ValueError(
                "data.train is missing: give 'scenes', a JSON-lines file or a folder (or --data on the line)"
            )
        if self.data.scenes is not None:
            check_scenes(self.data.scenes)
        if self.data.feature_cache and "vision_tower" in self.learning_rates:
            raise ValueError(
                "data.feature_cache keeps what a frozen vision tower computes, but learning_rates.vision_tower trains "
                "it: drop one of them"
            )

    def _check_adapters(self) -> None:
        lora = self.lora
        if lora is None:
            if "adapters" in self.learning_rates:
                raise ValueError(
                    "learning_rates.adapters is given but lora is null: give lora a rank, or drop the rate"
                )
            if self.model.quantization != "none":
                raise ValueError(
                    f"model.quantization={self.model.quantization!r} with lora: null would train no adapter on the "
                    "quantized language model: give lora a rank, or set model.quantization=none"
                )
        elif lora.task_routed and (lora.use_dora or lora.target_modules):
            other = "use_dora" if lora.use_dora else "target_modules"
            raise ValueError(
                f"lora.task_routed=true does not go with lora.{other}={lora[other]!r}: task-routed adapters are plain "
                "LoRA on every linear layer; drop one of the two"
            )

    def _check_groups(self) -> None:
        prompt = self.model.soft_prompt_type
        if "tag_encoder" in self.learning_rates and prompt != "dynamic":
            raise ValueError(
                f"learning_rates.tag_encoder is given, but soft_prompt_type={prompt!r} has no tag encoder: drop the "
                "rate, or set soft_prompt_type=dynamic"
            )
        if "soft_prompt" in self.learning_rates and prompt == "none":
            raise ValueError("learning_rates.soft_prompt is given, but soft_prompt_type='none': drop the rate (null)")

    def _check_stopping(self) -> None:
        patience = self.early_stopping.patience
        if patience is not None and str(self.training.get("eval_strategy", "no")) in ("no", "False"):
            raise ValueError(
                f"early_stopping.patience={patience} counts evaluations, but training.eval_strategy is 'no': set it to "
                "steps or epoch"
            )

    def _check_training(self) -> None:
        training = self.training
        if training.get("remove_unused_columns"):
            raise ValueError(
                "training.remove_unused_columns=true would drop images and tags, which are no inputs of the model "
                "yet when records are read: leave it out"
            )
        if training.get("dataloader_persistent_workers") and training.get("dataloader_num_workers"):
            raise ValueError(
                "training.dataloader_persistent_workers=true keeps workers that do not hear of a new epoch, so every "
                "epoch would draw the same captions: leave it out"
            )
        steps, epochs = training.get("max_steps", -1), training.get("num_train_epochs", 1)
        numbers = isinstance(steps, int | float) and isinstance(epochs, int | float)
        if steps == 0 or (numbers and steps < 0 and epochs <= 0):
            raise ValueError(
                f"training.max_steps={steps} with num_train_epochs={epochs} trains nothing: set max_steps to 1 or "
                "more, or num_train_epochs above 0 (max_steps=-1 leaves the length to the epochs)"
            )
        metric = str(training.get("metric_for_best_model") or "loss").removeprefix("eval_")
        if metric not in METRICS and "/" not in metric:
            near = get_close_matches(metric, METRICS, n=1)
            raise ValueError(
                f"training.metric_for_best_model={metric!r} is not measured: "
                + (f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(METRICS)}")
            )


load_recipe = Recipe.load
