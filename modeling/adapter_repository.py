"""Loading a repository that holds only what was trained: its backbones come from their own repositories.

Such a repository has PEFT's `adapter_config.json` and weights (adapters, projector, soft prompt, router) and a
`config.json` that names the backbones, but no weights of the whole model.
"""

import dataclasses
import json

import torch
from transformers import GenerationConfig, PreTrainedConfig
from transformers.core_model_loading import WeightRenaming
from transformers.utils import cached_file, find_adapter_config_file

# transformers takes `model.language_model.model.` for a legacy name and shortens it; here the language model is a whole
# one, and the adapters in it would silently not be loaded. (An empty list would count as none given.)
NAMES_AS_THEY_ARE = [WeightRenaming(source_patterns=r"^model\.", target_patterns="model.")]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
BACKBONES = ("vision", "text", "tag_encoder")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Given by the Auto classes and of no use here: the code is running already, the configuration is read again.
IGNORED_ARGUMENTS = ("adapter_kwargs", "config", "trust_remote_code", "_from_auto", "_from_pipeline", "code_revision")


def is_adapter_repository(name, **arguments):
    """Whether `name` (folder or Hub id) holds an adapter without the model that it belongs to."""
    hub = {key: arguments[key] for key in HUB_ARGUMENTS if key in arguments}
    if name is None or find_adapter_config_file(name, **hub) is None:
        return False
    quiet = {
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    return not any(cached_file(name, file, **hub, **quiet) for file in WEIGHTS)


def load_adapter_repository(model_class, config_class, name, adapter_name="default", **arguments):
    """
    The whole model: backbones from the repositories that the configuration names, then what this repository holds.

    Args:
        model_class: has `from_backbones`. config_class: of its configuration.
        name (`str`): folder or Hub id.
        **arguments: those of `from_pretrained` that concern the Hub, `dtype` and `quantization_config`.

    Returns:
        A model in evaluation mode with the adapter attached.

    Raises:
        OSError: a backbone cannot be loaded; the message names all of them.
        ValueError: an argument that this way of loading does not know.
    """
    hub = {key: arguments.pop(key) for key in HUB_ARGUMENTS if key in arguments}
    for key in IGNORED_ARGUMENTS:
        arguments.pop(key, None)
    dtype = arguments.pop("dtype", None) or arguments.pop("torch_dtype", None)
    quantization_config = arguments.pop("quantization_config", None)
    if arguments:
        raise ValueError(
            f"{', '.join(arguments)}: not understood for {name}, which is an adapter without its backbones; load it, "
            "merge it, save it, and load the result with these arguments."
        )
    config = config_class.from_pretrained(name, **hub)
    backbones = {role: (config.backbones or {}).get(role) for role in BACKBONES}
    if config.soft_prompt_type != "dynamic":
        backbones["tag_encoder"] = None
    try:
        model = model_class.from_backbones(
            **backbones,
            quantization_config=quantization_config or _saved_quantization(config),
            dtype=_as_dtype(dtype, config),
            **_own_fields(config),
        )
    except OSError as error:
        needed = ", ".join(f"{role}={value!r}" for role, value in backbones.items() if value)
        raise OSError(
            f"{name} is an adapter and needs its backbones {needed}, one of which cannot be loaded: check that they "
            f"exist, that you have access, and the connection. ({' '.join(str(error).split())[:300]})"
        ) from error
    model.config.backbones = config.backbones
    model.load_adapter(name, adapter_name=adapter_name, adapter_kwargs=hub)
    if model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(name, **hub)
    return model.eval()


def _own_fields(config):
    """Fields of the configuration that say what stands between the backbones."""
    nested = {"vision_config", "text_config", "tag_encoder_config", "image_token_id", "backbones"}
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    names = {field.name for field in dataclasses.fields(type(config))} - inherited - nested
    return {name: getattr(config, name) for name in names}


def _as_dtype(dtype, config):
    if dtype is None or dtype == "auto":
        dtype = getattr(config, "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _saved_quantization(config):
    """How the language model was quantized, without the list of layers that were left alone: it is made anew."""
    saved = getattr(config, "quantization_config", None)
    if saved is None:
        return None
    saved = saved if isinstance(saved, dict) else saved.to_dict()
    return {key: value for key, value in json.loads(json.dumps(saved)).items() if key != "llm_int8_skip_modules"}
