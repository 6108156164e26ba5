"""Image processor and tokenizers of pretrained backbones, made ready for a model that is assembled from them."""

from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils import logging

from .chat_templates import choose_chat_template

logger = logging.get_logger(__name__)

USUAL_QUESTION = 64  # tokens


def parts_of_backbones(
    vision: str, text: str, tag_encoder: str | None, config: Any, fields: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """
    Image processor, tokenizer and tag tokenizer (or `None`), as `PoiseProcessor.from_backbones` describes them.

    Args:
        fields: arguments of `PoiseProcessor`; those that the configuration knows are added, `chat_template` is taken
            out and given to the tokenizer.

    Raises:
        ValueError: as `PoiseProcessor.from_backbones`.
    """
    image_processor = AutoImageProcessor.from_pretrained(vision)
    image_token = fields.setdefault("image_token", "<image>")
    # Given at loading, since only what a tokenizer was made with is saved with it.
    side = {} if config is None or config.is_encoder_decoder else {"padding_side": "left"}
    tokenizer = AutoTokenizer.from_pretrained(text, image_token=image_token, **side)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"text={str(text)!r}: its tokenizer has neither a padding nor an end-of-text token.")
        logger.warning(f"The tokenizer of {text} has no padding token; it pads with {tokenizer.eos_token!r}.")
        tokenizer.pad_token = tokenizer.eos_token
    if config is None and "num_image_tokens" not in fields:
        raise ValueError("num_image_tokens is not known: give config=model.config, or num_image_tokens itself.")
    if config is not None:
        _check_image_size(image_processor, config)
        fields.setdefault("num_image_tokens", config.num_image_tokens)
        fields.setdefault("num_prompt_tokens", config.num_prompt_tokens)
        fields.setdefault("tag_score_encoding", config.tag_score_encoding)
        fields.setdefault("tasks", config.adapter_tasks)
        fields.setdefault("question_length", USUAL_QUESTION if config.asks_the_question else None)
    tag_tokenizer = None
    if tag_encoder is not None and (config is None or config.soft_prompt_type == "dynamic"):
        tag_tokenizer = AutoTokenizer.from_pretrained(tag_encoder)
        if config is not None:
            # Some checkpoints name no limit in their tokenizer, or one that their positions do not reach.
            longest = tag_tokenizer.model_max_length
            positions = getattr(config.tag_encoder_config, "max_position_embeddings", longest)
            tag_tokenizer.model_max_length = min(longest, positions)
    tokenizer.chat_template = choose_chat_template(tokenizer, image_token, fields.pop("chat_template", None))
    return image_processor, tokenizer, tag_tokenizer


def _check_image_size(image_processor: Any, config: Any) -> None:
    """Raises a `ValueError` unless the image processor makes images of the size that `config` counts tokens for."""
    made = image_processor([Image.new("RGB", (64, 48))], return_tensors="np")
    rows, columns = config.patch_grid
    patch = config.vision_config.patch_size
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    height, width = made["pixel_values"].shape[-2:]
    if (height // patch_height, width // patch_width) != (rows, columns):
        raise ValueError(
            f"The image processor makes {height}×{width} images, but the configuration expects "
            f"{rows * patch_height}×{columns * patch_width}: set vision_image_size={height}."
        )
