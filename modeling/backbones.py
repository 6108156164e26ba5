"""Pretrained backbones: found by Hub id or folder, loaded frozen, put together under one configuration."""

from dataclasses import fields as dataclass_fields
from difflib import get_close_matches
from itertools import chain

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    ImageProcessingMixin,
    Siglip2TextConfig,
    Siglip2TextModel,
    SiglipTextConfig,
    SiglipTextModel,
)
from transformers.utils import logging

# AutoModel knows the text half of CLIP by itself, but not SigLIP's.
AutoModel.register(SiglipTextConfig, SiglipTextModel, exist_ok=True)
AutoModel.register(Siglip2TextConfig, Siglip2TextModel, exist_ok=True)

ALIGNMENT = 64  # bytes; where torch's own allocator places tensors

# Towers that were trained on fixed-resolution images but are used at their image processor's size.
FREE_SIZE_TOWERS = ("dinov2", "dinov2_with_registers", "dinov3_vit")


def vision_config_of(vision):
    """The vision half of a checkpoint: CLIP and SigLIP publish both halves together."""
    config = AutoConfig.from_pretrained(vision)
    config = getattr(config, "vision_config", config)
    if config.model_type == "siglip2_vision_model":
        raise ValueError(
            f"vision={vision!r} is a NaFlex SigLIP 2 with images of variable shape, which has no fixed number of "
            "image tokens: use a fixed-resolution one such as 'google/siglip2-base-patch16-224'."
        )
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False
    return config


def processor_image_size(vision):
    """Side in pixels that the checkpoint's image processor produces, or `None` if it says nothing square."""
    settings, _ = ImageProcessingMixin.get_image_processor_dict(vision)
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    size = size or settings.get("size") or {}
    if isinstance(size, int):
        return size
    return size.get("height") if size.get("height") == size.get("width") else None


def check_fields(config_class, fields):
    """Raise a `ValueError` that names the first of `fields` which the configuration does not have."""
    known = [field.name for field in dataclass_fields(config_class)]
    for name, value in fields.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name}={value!r} is no field of {config_class.__name__}.{hint}")


def load_encoder(argument, source, dtype, **arguments):
    """
    A pretrained vision tower or tag encoder. Weights of a half that nobody asked for are passed over in silence.

    Raises:
        ValueError: a weight is missing, so that part of the backbone would be random.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers would list every weight of CLIP's text half
    try:
        model, report = AutoModel.from_pretrained(source, dtype=dtype, output_loading_info=True, **arguments)
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)  # nothing reads a pooler
    if missing:
        raise ValueError(
            f"{argument}={source!r} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]!r}: "
            "name a checkpoint of that architecture."
        )
    return align_weights(model)


def align_weights(model):
    """
    Copy weights on the CPU that do not begin at a multiple of 64 bytes to where torch itself would have put them.

    Weights mapped from a file begin at any byte. For a single row, MKL multiplies by another kernel where the weight is
    not aligned to 16 bytes (on AMD's processors, and on Intel's without AVX): the loaded model would differ from the
    saved one by a rounding error. Reading the file is what takes the time, and the first forward pass would do that.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu" and tensor.is_floating_point() and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


def composite_config(config_class, vision, text, tag_encoder, **fields):
    """The checked configuration of a new model, from its backbones' configurations; reads no weight."""
    check_fields(config_class, fields)
    uses_tags = fields.get("soft_prompt_type", "dynamic") == "dynamic"
    if uses_tags and tag_encoder is None:
        raise ValueError(
            "tag_encoder=None, but soft_prompt_type='dynamic' reads tags: name a BERT-like model, or choose "
            "soft_prompt_type='static' or 'none'."
        )
    vision_config = vision_config_of(vision)
    if vision_config.model_type in FREE_SIZE_TOWERS and "vision_image_size" not in fields:
        fields["vision_image_size"] = processor_image_size(vision)
    return config_class(
        vision_config=vision_config,
        text_config=AutoConfig.from_pretrained(text),
        tag_encoder_config=AutoConfig.from_pretrained(tag_encoder) if uses_tags else None,
        backbones={"vision": vision, "text": text, "tag_encoder": tag_encoder if uses_tags else None},
        **fields,
    )


def load_backbones(config_class, vision, text, tag_encoder, quantization_config=None, dtype=torch.float32, **fields):
    """
    Configuration and frozen backbones `{"vision", "text", "tag_encoder"}` of a new model.

    The configuration is checked, and its mistakes raised as `ValueError`, before any weight is read. The language
    model's embeddings grow by one row if its vocabulary has no room for the placeholder `<image>`.
    """
    config = composite_config(config_class, vision, text, tag_encoder, **fields)
    config.image_token_id, vocabulary = placeholder_token(text)
    if config.router_type == "reliability" and config.soft_prompt_type == "dynamic":
        config.tag_separator_ids = separator_ids(tag_encoder)
    language_model_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    arguments = {} if quantization_config is None else {"quantization_config": quantization_config}
    language_model = language_model_class.from_pretrained(text, dtype=dtype, **arguments)
    if vocabulary > language_model.get_input_embeddings().weight.shape[0]:
        language_model.resize_token_embeddings(vocabulary, mean_resizing=False)
    config.text_config = language_model.config
    backbones = {
        "vision": load_encoder("vision", vision, dtype, config=config.vision_config),
        "text": align_weights(language_model),
    }
    if config.soft_prompt_type == "dynamic":
        backbones["tag_encoder"] = load_encoder("tag_encoder", tag_encoder, dtype)
    return config, backbones


def placeholder_token(text):
    """Id of `<image>` in the tokenizer of `text`, and the size of its vocabulary; appended if it is missing."""
    tokenizer = AutoTokenizer.from_pretrained(text)
    if "<image>" not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer.convert_tokens_to_ids("<image>"), len(tokenizer)


def separator_ids(tag_encoder):
    """What the tokenizer of `tag_encoder` puts between tags and around them: the comma and its special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tag_encoder)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}  # an unknown word is a word
    return sorted(special | {tokenizer("a, a", add_special_tokens=False)["input_ids"][1]})


def mark_initialized(module):
    """Tell transformers' initialization that this backbone already has its weights."""
    for child in module.modules():
        child._is_hf_initialized = True


def quantize_composite(model):
    """
    Give the composite what transformers looks for in a quantized model.

    The language model was quantized alone; saving, training checks and reloading ask the outermost model. The list of
    modules to leave alone is made from the model: every linear layer that is not quantized now.
    """
    language_model = model.model.language_model
    quantizer = language_model.hf_quantizer
    kept = [
        name
        for name, module in model.named_modules()
        # A quantized layer is a linear one too, but its weight is a parameter of a special kind.
        if isinstance(module, torch.nn.Linear) and type(module.weight) is torch.nn.Parameter
    ]
    quantizer.quantization_config.llm_int8_skip_modules = kept
    if hasattr(quantizer, "modules_to_not_convert"):
        quantizer.modules_to_not_convert = kept
    model.hf_quantizer = quantizer
    model.config.quantization_config = quantizer.quantization_config
    if hasattr(language_model.config, "quantization_config"):
        del language_model.config.quantization_config
    for flag in ("is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(language_model, flag):
            setattr(model, flag, getattr(language_model, flag))


def keep_quantized_weights_trainable(model):
    """
    Stop bitsandbytes from repacking 4-bit weights for CPUs with AVX512-BF16.

    It repacks at the first forward without gradients, into a form that has no gradient of its own: every later training
    step is silently wrong, and what is saved is damaged. Layers carry a switch.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
