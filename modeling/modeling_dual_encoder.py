"""The dual encoder: a frozen vision tower and a frozen text encoder, brought into one space by small projectors.

It ranks texts for an image and images for a text, classifies without training on the classes, and is Poise's own
tagger. transformers' pipeline "zero-shot-image-classification" runs it as it is.
"""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbones import align_weights, check_fields, load_encoder, mark_initialized, vision_config_of
from .configuration_dual_encoder import PoiseDualEncoderConfig
from .dual_encoder_head import DualEncoderHead


@dataclass
class PoiseDualEncoderOutput(ModelOutput):
    """
    `loss` (where asked for), `logits_per_image` (N, B) and its transpose `logits_per_text`, and the unit vectors
    `image_embeds` (N, D), `text_embeds` (B, D).
    """

    loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None


class PoiseDualEncoder(PreTrainedModel):
    """
    Frozen `vision_model` and `text_model`, and the trained `head` over their features.

    Make one of pretrained parts with [`PoiseDualEncoder.from_backbones`], train its head with `poise align`.

    Examples:
        >>> model = PoiseDualEncoder.from_pretrained("outputs/align/model")
        >>> processor = AutoProcessor.from_pretrained("outputs/align/model")
        >>> inputs = processor(images=image, text=["a red square", "a blue star"], padding=True, return_tensors="pt")
        >>> model(**inputs).logits_per_image.shape
        torch.Size([1, 2])
    """

    config: PoiseDualEncoderConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PoiseDualEncoderConfig, backbones=None):
        super().__init__(config)
        backbones = backbones or {
            "vision": AutoModel.from_config(config.vision_config),
            "text": AutoModel.from_config(config.text_config),
        }
        self.vision_model = without_pooler(backbones["vision"])
        self.text_model = without_pooler(encoder_of(backbones["text"]))
        self.head = DualEncoderHead(config)
        self.post_init()
        for encoder in (self.vision_model, self.text_model):
            encoder.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @classmethod
    def from_backbones(cls, vision, text, dtype=torch.float32, **fields):
        """
        A dual encoder of pretrained, frozen encoders and a new head (drawn from torch's random state).

        Args:
            vision, text (`str`): Hub ids or folders.
            **fields: of [`PoiseDualEncoderConfig`].

        Raises:
            ValueError: a field is unknown or contradicts the encoders, or a checkpoint lacks weights.
        """
        check_fields(PoiseDualEncoderConfig, fields)
        config = PoiseDualEncoderConfig(
            vision_config=vision_config_of(vision),
            text_config=text_config_of(text),
            backbones={"vision": vision, "text": text},
            **fields,
        )
        encoders = {
            "vision": load_encoder("vision", vision, dtype, config=config.vision_config),
            "text": load_encoder("text", text, dtype, config=config.text_config),
        }
        for encoder in encoders.values():
            mark_initialized(encoder)
        return cls(config, encoders).to(dtype).eval()

    @torch.no_grad()
    def _init_weights(self, module):
        if hasattr(module, "init_own_weights"):
            module.init_own_weights(self.config.initializer_range)
        else:
            super()._init_weights(module)

    def train(self, mode=True):
        super().train(mode)
        self.vision_model.eval()  # frozen encoders are functions; dropout inside would only blur their features
        self.text_model.eval()
        return self

    # ---- frozen features -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def vision_features(self, pixel_values):
        """Images [N, 3, H, W] → `{"vision_tokens": (N, P, Dv), "vision_cls": (N, Dv)}`, only what has a path."""
        layer, prefix = self.config.vision_feature_layer, self.config.num_prefix_tokens
        arguments = {} if layer is None else {"output_hidden_states": True}
        if pixel_values.shape[-1] != getattr(self.config.vision_config, "image_size", pixel_values.shape[-1]):
            arguments["interpolate_pos_encoding"] = True
        outputs = self.vision_model(pixel_values.to(self.dtype), return_dict=True, **arguments)
        states = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]  # (N, prefix + P, Dv)
        features = {}
        if "tokens" in self.config.vision_paths:
            features["vision_tokens"] = states[:, prefix:]  # (N, P, Dv)
        if "cls" in self.config.vision_paths:
            features["vision_cls"] = states[:, 0]  # (N, Dv)
        return features

    @torch.no_grad()
    def text_features(self, input_ids, attention_mask=None):
        """Texts [B, L] → `{"text_tokens": (B, L, Dt), "text_mask": (B, L)}`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask  # (B, L)
        layer = self.config.text_feature_layer
        arguments = {} if layer is None else {"output_hidden_states": True}
        outputs = self.text_model(input_ids=input_ids, attention_mask=mask, return_dict=True, **arguments)
        states = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]  # (B, L, Dt)
        return {"text_tokens": states * mask[..., None].to(states.dtype), "text_mask": mask}

    # ---- the shared space ----------------------------------------------------------------------------------------

    @can_return_tuple
    def get_image_features(self, pixel_values, **kwargs):
        """Images [N, 3, H, W] → an output whose `pooler_output` holds unit vectors (N, D)."""
        embeds = self.head.embed_images(**self.vision_features(pixel_values))  # (N, D)
        return BaseModelOutputWithPooling(pooler_output=embeds)

    @can_return_tuple
    def get_text_features(self, input_ids, attention_mask=None, token_type_ids=None, **kwargs):
        """Texts [B, L] → an output whose `pooler_output` holds unit vectors (B, D). One segment is assumed."""
        embeds = self.head.embed_texts(**self.text_features(input_ids, attention_mask))  # (B, D)
        return BaseModelOutputWithPooling(pooler_output=embeds)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        **kwargs,
    ) -> PoiseDualEncoderOutput:
        """
        Args:
            input_ids [B, L], attention_mask [B, L]: texts.
            pixel_values [N, 3, H, W]: images.
            token_type_ids: tokenizers give them; one segment is assumed.
            return_loss: the contrastive loss, for which B = N and row i belongs to row i.

        Raises:
            ValueError: images or texts are missing, or `return_loss` with B ≠ N.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(
                f"{missing} is missing: a dual encoder compares images with texts; for one of them call "
                "get_image_features or get_text_features."
            )
        image_embeds = self.head.embed_images(**self.vision_features(pixel_values))  # (N, D)
        text_embeds = self.head.embed_texts(**self.text_features(input_ids, attention_mask))  # (B, D)
        loss = None
        if return_loss:
            if len(image_embeds) != len(text_embeds):
                raise ValueError(
                    f"return_loss=True with {len(image_embeds)} images and {len(text_embeds)} texts: give one text "
                    "for each image."
                )
            loss = self.head.loss(image_embeds, text_embeds)
        logits = self.head.logits(image_embeds, text_embeds)  # (N, B)
        return PoiseDualEncoderOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=logits.T,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )

    def save_pretrained(self, save_directory, **kwargs):
        # One class serves two Auto classes; transformers writes only the registered one into `auto_map`.
        module = type(self).__module__.split(".")[-1]
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoModel": f"{module}.{type(self).__name__}",
        }
        return super().save_pretrained(save_directory, **kwargs)


def text_config_of(text):
    """The text half of a checkpoint (CLIP and SigLIP publish both halves together), or its own configuration."""
    config = AutoConfig.from_pretrained(text)
    return config.text_config if hasattr(config, "vision_config") else config


def encoder_of(model):
    """The encoder of an encoder-decoder model; any other model as it is."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def without_pooler(encoder):
    """The encoder without its pooling layer, which nothing reads."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


PoiseDualEncoderConfig.register_for_auto_class()
PoiseDualEncoder.register_for_auto_class("AutoModelForZeroShotImageClassification")

__all__ = ["PoiseDualEncoder"]
