"""The configuration of a router on a pretrained vision-language model: which model, and what is new on it."""

from types import SimpleNamespace

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .information_router import ROUTERS
from .named_choices import check_choice
from .soft_prompt import PROMPT_POOLINGS, SCORE_ENCODINGS


@strict
class VlmRouterConfig(PreTrainedConfig):
    r"""
    Configuration of [`RoutedVlm`]. Fields of the router and the soft prompt are those of [`PoiseConfig`].

    Args:
        vlm (`str`): Hub id or folder of the vision-language model, which stays where it is.
        vlm_type (`str`, *optional*): its `model_type`, by which a wrong model is told.
        tag_encoder (`str`, *optional*): Hub id or folder of the BERT-like tag encoder.
        width (`int`): size D of its image tokens.
        tower_width (`int`): size Dv of its vision tower's states.
        tower_layers (`int`): number of them, without the embeddings.
        reader_width (`int`, *optional*, defaults to 64): of the attention by which image tokens read the soft prompt.
        tag_separator_ids (`list[int]`, *optional*): the tag encoder's tokens between tags and around them.
        lora (`dict`, *optional*): `r`, `alpha`, `dropout` and `target_modules` of LoRA adapters in the language model;
            the linear layers of its attention by default.

    Raises:
        ValueError: an unknown name, or a router between two streams where no tag encoder gives the second.

    Examples:
        >>> sizes = {"width": 4096, "tower_width": 1024, "tower_layers": 24}
        >>> VlmRouterConfig(vlm="llava-hf/llava-1.5-7b-hf", vlm_type="llava", **sizes).router_type
        'reliability'
    """

    model_type = "poise_vlm_router"

    vlm: str | None = None
    vlm_type: str | None = None
    tag_encoder: str | None = None
    width: int = 0
    tower_width: int = 0
    tower_layers: int = 0
    reader_width: int = 64
    tag_separator_ids: list[int] | None = None
    router_type: str = "reliability"
    soft_prompt_length: int = 8
    soft_prompt_pooling: str = "queries"
    tag_score_encoding: str = "attention_bias"
    channel_fraction: float = 0.1
    channel_rank: int | None = None
    channel_max_tokens: int = 256
    stream_dropout: float = 0.2
    reliability_quantile: float = 0.99
    initializer_range: float = 0.02
    lora: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_choice("router_type", self.router_type, tuple(ROUTERS))
        check_choice("soft_prompt_pooling", self.soft_prompt_pooling, PROMPT_POOLINGS)
        check_choice("tag_score_encoding", self.tag_score_encoding, SCORE_ENCODINGS)
        if self.soft_prompt_length < 1:
            raise ValueError(f"soft_prompt_length={self.soft_prompt_length} must be at least 1.")

    def of_parts(self, tag_encoder_config):
        """What the soft prompt and the routers of Poise read from a configuration."""
        shapes = {
            "text_config": SimpleNamespace(hidden_size=self.width),
            "vision_config": SimpleNamespace(hidden_size=self.tower_width, num_hidden_layers=self.tower_layers),
            "tag_encoder_config": tag_encoder_config,
            "soft_prompt_type": "dynamic",
        }
        return SimpleNamespace(**{**self.to_dict(), **shapes})
