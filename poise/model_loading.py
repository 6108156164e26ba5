"""The model, device, number format and output folder that a command line names, or one line on why there is none."""

import re
from pathlib import Path
from typing import Any

import torch

from poise.evaluation.saved_models import load_whole, loading_errors, saved_config
from poise.training.atomic_folders import MANIFEST


def load_run(name: str) -> tuple[Any, Any] | str:
    """Model with its adapters merged and processor of a local run; else the folder or id that transformers loads."""
    folder = Path(name)
    plain = (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()
    if plain or not folder.is_dir():  # a plain model needs nothing of training, and PEFT takes seconds to import
        return name
    from poise.training.sft.checkpoints import is_run, merged_model, trained_folder

    if not is_run(name):
        return name
    trained = trained_folder(name)
    adapters = (trained / "adapter_config.json").is_file()
    if not adapters and saved_config(trained).get("model_type") == "poise_vlm_router":
        return str(trained)
    return merged_model(name)


def chosen_device(name: str | None = None) -> torch.device:
    """
    Args:
        name (`str`, *optional*, defaults to `"cuda"` where there is one, else `"cpu"`).

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name!r} is no device of torch: write cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name!r}: torch sees {torch.cuda.device_count()} such devices here; write cpu")
    return device


def launched(device: str | None) -> tuple[Any, str | None]:
    """
    The state of this process among those of `accelerate launch`, and its device.

    Args:
        device (`str`, *optional*): as of a command line; several processes have each their own by default.
    """
    from accelerate import PartialState

    process = PartialState(cpu=device == "cpu")
    return process, str(process.device) if device is None and process.num_processes > 1 else device


def chosen_dtype(name: str) -> torch.dtype | str:
    """
    Args:
        name (`str`): such as `"bfloat16"`; `"auto"` stays what it is.

    Raises:
        ValueError: it names no floating-point format of torch.
    """
    found = "auto" if name == "auto" else getattr(torch, name, None)
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype={name!r} is no floating-point format of torch: write auto, float32 or bfloat16")
    return found


def load_model(
    name: str, device: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Model in evaluation mode, and its processor.

    Args:
        name (`str`): folder of a saved model, Hub repository, run of `poise sft`, or one of its checkpoints.
        device (`str`, *optional*, defaults to `"cuda"` where there is one, else `"cpu"`); a quantized model stays where
            its library puts it.
        dtype (`str`, *optional*, defaults to `"auto"`): of the weights; `"auto"` is as they are stored.

    Raises:
        ValueError: a folder without a model, with damaged weights, or whose model takes no images; an unknown device or
            format.
    """
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForImageTextToText,
    )

    place, number_format = chosen_device(device), chosen_dtype(dtype)
    check_no_statistics(name)
    loaded = load_run(name)
    if isinstance(loaded, str):
        name = loaded
    else:
        model, processor = loaded
        check_chat_template(name, processor)
        model = model.to(place)
        return (model if number_format == "auto" else model.to(number_format)).eval(), processor
    folder = Path(name)
    if folder.is_dir():
        from poise.training.run_files import check_sound

        check_sound(folder)
    is_adapter = (folder / "adapter_config.json").is_file()
    if folder.is_dir() and not is_adapter and not (folder / "config.json").is_file():
        raise ValueError(f"model={name!r} is a folder without config.json; name the folder of a saved model.")
    if not is_adapter:
        try:
            with loading_errors(name):
                config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:  # transformers does not say whose files it misses or does not know
            if str(error).startswith(f"model={name!r}"):
                raise
            raise OSError(
                f"model={name!r} could not be loaded: name a folder that is there, or a repository of the Hub within "
                f"reach ({' '.join(str(error).split())[:200]})"
            ) from error
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not getattr(config, "auto_map", None):
            raise ValueError(
                f"model={name!r} is a {config.model_type!r} model, which takes no images; name one that does."
            )
    processor = load_processor(name, None if is_adapter else config, trust_remote_code)
    options: dict[str, Any] = {"dtype": number_format, "trust_remote_code": trust_remote_code}
    model = load_whole(AutoModelForImageTextToText, name, **options)
    if not getattr(model, "is_quantized", False):
        model = model.to(place)
    return model.eval(), processor


def check_no_statistics(name: str) -> None:
    """
    Raises:
        ValueError: the folder holds what `poise fit-router` wrote, which is no model.
    """
    folder = Path(name)
    if (folder / "config.json").is_file() and "profile_size" in saved_config(folder):
        raise ValueError(
            f"model={name!r} holds statistics of poise fit-router, which judge images for another model: "
            f"poise fit-router VLM --output {name} --image FILE"
        )


def load_processor(name: str, config: Any = None, trust_remote_code: bool = False) -> Any:
    """
    The processor of a saved model, which takes no time beside the model itself.

    Args:
        config (*optional*): the model's, which the processor is compared with.

    Raises:
        ValueError: a package that it needs is missing, it reads no images, or it belongs to another model.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except ImportError as error:
        missing = re.findall(r"pip install ([\w-]+)", str(error)) or re.findall(r"[\w-]+ library", str(error))
        needed = missing[0] if missing else " ".join(str(error).split())[:160]
        raise ValueError(
            f"model={name!r}: its processor needs {needed}, which is not installed: install it."
        ) from error
    except (OSError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model={name!r}: its processor could not be loaded ({' '.join(str(error).split())[:160]}); save one "
            "beside the model with processor.save_pretrained."
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"model={name!r} comes with {type(processor).__name__} alone, which reads no images: save its processor "
            "beside it."
        )
    if config is not None:
        ours, theirs = (getattr(some, "image_token_id", None) for some in (processor, config))
        # Gemma 3 and Llama 4 ask for an image by one token, and fill its places with another of the special ones.
        special = getattr(getattr(processor, "tokenizer", None), "added_tokens_decoder", {})
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs and theirs not in special:
            raise ValueError(
                f"model={name!r}: its processor marks images by the token {ours}, the model by {theirs}; save the "
                "processor that belongs to the model."
            )
    check_chat_template(name, processor)
    return processor


def check_chat_template(name: str, processor: Any) -> None:
    """
    Raises:
        ValueError: the chat template is damaged, or has no words for a question about an image.
    """
    from jinja2 import TemplateError

    if getattr(processor, "chat_template", None) is None:
        return
    question = [{"type": "image"}, {"type": "text", "text": "what is shown ?"}]
    try:
        processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    except (TemplateError, TypeError) as error:
        raise ValueError(
            f"model={name!r}: its chat template cannot write a question about an image "
            f"({' '.join(str(error).split())[:160]}); save the processor that belongs to the model."
        ) from error


# What stages of training leave beside a finished model, and in it.
_MARKS = ("card_data.json", "recipe.yaml", f"model/{MANIFEST}")
_MODELS = ("config.json", "adapter_config.json")


def output_folder(model: str, what: str, chosen: str | None = None) -> Path:
    """
    `chosen`, or `RUN/WHAT` for a training run or its finished model, where the model card finds it, or
    `outputs/WHAT/MODEL`.

    Raises:
        ValueError: that is a file.
    """
    folder = Path(chosen) if chosen else _default(model, what)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file: name a folder.")
    return folder


def run_of(model: str) -> Path | None:
    """
    The folder of the training run that a model belongs to, if it names the run itself or its finished model.

    A checkpoint of a run is none: what is measured on it does not describe what the run ended with.
    """
    path = Path(model)
    if path.name == "model" and path.is_dir() and any((path.parent / mark).is_file() for mark in _MARKS):
        return path.parent
    is_model = any((path / name).is_file() for name in _MODELS)
    holds_one = any((path / "model" / name).is_file() for name in _MODELS) or any(path.glob("checkpoint-*"))
    return path if holds_one and not is_model else None


def _default(model: str, what: str) -> Path:
    run = run_of(model)
    if run is not None:
        return run / what
    return Path("outputs", what, short_name(model))


def short_name(model: str, *more: str) -> str:
    """A model by the last two folders that say something of it, and what stands behind them, as the name of a file."""
    parts = [part for part in Path(model).parts if part not in ("/", "..", ".", "outputs", "model")][-2:]
    return re.sub(r"[^\w.=-]+", "-", "-".join([*parts, *more])) or "model"
