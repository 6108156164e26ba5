"""A router and a soft prompt on any pretrained vision-language model, which stays as it is.

    pixel_values ─ the VLM's own vision tower and projector ─┐
                                                             ├─ router ─ image tokens read the prompt ─ the VLM's own
    tags + scores ─ tag encoder ─ dynamic soft prompt ───────┘                                           language model

A reliability router also reads the question, to tell whether image and tags still hold what is asked.

Everything happens in what the model's own `get_image_features` returns, so that its positions, masks, deeper features,
cache, processor and chat template need not be known. The image tokens read the soft prompt by an attention whose output
starts at zero: a new router leaves every logit what it was, and no placeholder is added to the prompt.
"""

import functools
import importlib
import os
import re
from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import cached_file, logging

from .backbones import separator_ids
from .configuration_vlm_router import VlmRouterConfig
from .image_items import equal_places, of_items, states_of_items
from .image_reliability import image_arguments, layer_outputs, on_model, tower_states
from .image_route import ImageRoute
from .pretrained_poise import without_pooler

logger = logging.get_logger(__name__)

WEIGHTS = "model.safetensors"
# Their own `generate` runs the vision tower itself and does not ask `get_image_features`.
OWN_GENERATE = ("blip-2", "instructblip", "instructblipvideo", "kosmos-2")
TAGS = ("tag_input_ids", "tag_attention_mask", "tag_scores")
QUESTION = ("question_input_ids", "question_attention_mask")
PIXELS = ("pixel_values", "pixel_values_images", "image_patches")
BACKBONES = ("vlm.", "tag_encoder.")  # what is not new, and is not saved


class RoutedVlm(PreTrainedModel):
    """
    A pretrained vision-language model with a router and a soft prompt on its image tokens.

    Its inputs are those of the model, and per image `tag_input_ids`, `tag_attention_mask` and `tag_scores` [N, L], all
    or none, and `question_input_ids` and `question_attention_mask` [N, Q], what is asked in the tag encoder's
    vocabulary; its outputs are the model's. `router_weights` [N, 2] holds what the last images were weighed with.

    Examples:
        >>> vlm, tag_encoder = "llava-hf/llava-1.5-7b-hf", "sentence-transformers/all-MiniLM-L6-v2"
        >>> model = RoutedVlm.from_vlm(vlm, tag_encoder)  # doctest: +SKIP
        >>> model.generate(**inputs, **tags, max_new_tokens=16)  # doctest: +SKIP
    """

    config_class = VlmRouterConfig
    base_model_prefix = "route"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(self, config: VlmRouterConfig, vlm, tag_encoder):
        super().__init__(config)
        self.vlm, self.tag_encoder = vlm, without_pooler(tag_encoder)
        self.route = ImageRoute(config, tag_encoder.config)
        for module in self.route.modules():
            if hasattr(module, "init_own_weights"):
                module.init_own_weights(config.initializer_range)
        self.route.to(vlm.device)
        self.router_weights: torch.Tensor | None = None
        self.generation_config = vlm.generation_config
        self.freeze_backbones()
        if config.lora is not None:
            self._add_lora(**config.lora)

    def _add_lora(self, r, alpha=16, dropout=0.0, target_modules=None):
        # By name, so that a repository without LoRA loads where there is no PEFT.
        peft = importlib.import_module("peft")
        targets = attention_layers(self.vlm) if target_modules is None else target_modules
        settings = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
        peft.inject_adapter_in_model(settings, self.vlm)

    @staticmethod
    def is_new(name):
        """Whether a weight belongs to what is trained and saved here."""
        return not name.startswith(BACKBONES) or "lora_" in name

    @classmethod
    def from_vlm(
        cls, vlm, tag_encoder, example=None, dtype="auto", trust_remote_code=False, quantization_config=None, **fields
    ) -> "RoutedVlm":
        """
        A new, untrained router on a pretrained model; the model's logits are what they were.

        Args:
            vlm (`str` or `PreTrainedModel`): Hub id, folder, or a loaded image-text-to-text model.
            tag_encoder (`str` or `PreTrainedModel`): Hub id or folder of a BERT-like encoder, or the encoder.
            example (`Mapping`, *optional*): what the model's image processor makes of one image, from which shapes are
                read; made with the processor of the same id by default.
            dtype, trust_remote_code, quantization_config: of loading the model.
            **fields: fields of [`VlmRouterConfig`].

        Raises:
            ValueError: a family whose image features enter elsewhere, or that shows no states of its tower.
        """
        options = {"trust_remote_code": trust_remote_code}
        source = vlm if isinstance(vlm, str) else (vlm.config._name_or_path or None)
        if isinstance(vlm, str):
            quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
            vlm = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, **quantized, **options)
        encoder_source = tag_encoder if isinstance(tag_encoder, str) else (tag_encoder.config._name_or_path or None)
        if isinstance(tag_encoder, str):
            tag_encoder = AutoModel.from_pretrained(tag_encoder, dtype=torch.float32)
        if image_owner(vlm) is None:
            raise _no_place(vlm)
        if "width" not in fields:
            fields |= _shapes(vlm.eval(), example, source, options, fields.get("router_type", "reliability"))
        if fields.get("router_type", "reliability") == "reliability" and "tag_separator_ids" not in fields:
            fields["tag_separator_ids"] = _separators(encoder_source)
        shapes = {"vlm": source, "vlm_type": vlm.config.model_type, "tag_encoder": encoder_source}
        return cls(VlmRouterConfig(**{**shapes, **fields}), vlm, tag_encoder.to(vlm.device)).eval()

    def freeze_backbones(self):
        """Stop gradients to the model and the tag encoder; what is new stays trainable."""
        self.vlm.requires_grad_(False)
        self.tag_encoder.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        # Frozen towers are functions: dropout inside them would only blur what the router calls typical.
        for tower in (self.tag_encoder, self.vlm.get_encoder("image")):
            if tower is not None and not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    @contextmanager
    def routing(self, tags=None, question=None, images=()):
        """
        Within it the model's own `get_image_features` returns routed tokens. `tags`: ids, mask, scores (N, L),
        `question`: ids and mask (N, Q). `images`: names of what the model is given of images.

        Raises:
            ValueError: the model was given images and did not ask `get_image_features` for them.
        """
        asked = False
        owner = image_owner(self.vlm)
        original = owner.get_image_features
        own = vars(owner).get("get_image_features")

        @functools.wraps(original)
        def routed(*args, **kwargs):
            nonlocal asked
            asked = True
            return self.routed_image_features(original, tags, question, *args, **kwargs)

        owner.get_image_features = routed
        try:
            yield
        finally:
            if own is None:
                del owner.get_image_features
            else:
                owner.get_image_features = own
        if images and not asked:
            raise ValueError(
                f"vlm={type(self.vlm).__name__} ({self.vlm.config.model_type}) read {images[0]} without asking "
                "get_image_features: nothing was routed; take another family."
            )

    def routed_image_features(self, original, tags, question, *args, **kwargs):
        """What `original(*args, **kwargs)`, the model's `get_image_features`, returns, with routed tokens."""
        kwargs["return_dict"] = True
        if self.config.router_type == "reliability":
            kwargs["output_hidden_states"] = True
        with layer_outputs(self.vlm.get_encoder("image")) as outputs:
            features = original(*args, **kwargs)
        grid = kwargs.get("image_grid_thw")
        main = _main(features)
        pooled = features[main]
        items = list(pooled)  # n × (P_i, D), images or tiles
        tags = of_items(tags, len(items), items[0].device)
        if question is not None:
            question = of_items(question, len(items), items[0].device)
        states = None
        if self.config.router_type == "reliability":
            states = states_of_items(features.get("hidden_states") or outputs, items, grid)  # n × L' × [1, P', Dv]
        routed, weights, applied = ([None] * len(items) for _ in range(3))
        for places in equal_places(items, states):
            some = torch.stack([items[i] for i in places])  # (N, P, D)
            seen = None
            if states is not None:
                layers = zip(*(states[i] for i in places), strict=True)
                seen = [torch.cat(layer) for layer in layers]  # L' × [N, P', Dv]
            asked = None if question is None else tuple(rows[places] for rows in question)
            tokens, weight, kept = self.route(
                some.to(self.route_dtype), tuple(rows[places] for rows in tags), self.tag_encoder, seen, asked
            )
            for i, place in enumerate(places):
                routed[place] = tokens[i].to(pooled[0].dtype)
                weights[place] = None if weight is None else weight[i]
                applied[place] = None if kept is None else kept[i]
        self.router_weights = None if weights[0] is None else torch.stack(weights)  # (n, 2)
        features[main] = torch.stack(routed) if torch.is_tensor(pooled) else type(pooled)(routed)
        if self.config.router_type == "reliability" and features.get("deepstack_features"):
            # Features that are added in deeper layers say what the tokens say: they fade with them.
            faded = [
                [part * weight for part, weight in zip(layer, applied, strict=True)]
                for layer in features["deepstack_features"]
            ]
            features["deepstack_features"] = faded
        return features

    @property
    def route_dtype(self):
        return next(self.route.parameters()).dtype

    def observe(self, **inputs):
        """
        Adds sound images, their tags and questions to the router's statistics; nothing is trained. `eval()` makes
        verdicts of it.

        Args:
            **inputs: what `get_image_features` takes of some images, and their tags and questions.
        """
        if self.config.router_type != "reliability":
            raise ValueError(f"router_type={self.config.router_type!r} keeps no statistics: take 'reliability'.")
        self.route.router.train()
        with torch.enable_grad():  # the router observes what a training step would show it
            self.get_image_features(**inputs)

    def get_image_features(self, *args, **kwargs):
        """The model's own, routed; see [`RoutedVlm`] for tags and questions."""
        with self.routing(*_read_by_router(kwargs)):
            return image_owner(self.vlm).get_image_features(*args, **kwargs)

    def forward(self, *args, **kwargs):
        """As the model's own, with the tags of each image and what is asked about it."""
        with self.routing(*_read_by_router(kwargs), _images_in(kwargs)):
            return self.vlm(*args, **kwargs)

    def generate(self, *args, **kwargs):
        """As the model's own, with the tags of each image and what is asked about it."""
        read = _read_by_router(kwargs)
        if self.config.vlm_type in OWN_GENERATE:
            raise ValueError(
                f"generate of {type(self.vlm).__name__} runs its vision tower around get_image_features: nothing would "
                "be routed; call forward, or take another family."
            )
        with self.routing(*read, _images_in(kwargs)):
            return self.vlm.generate(*args, **kwargs)

    def can_generate(self):
        return True

    def get_input_embeddings(self):
        return self.vlm.get_input_embeddings()

    def get_output_embeddings(self):
        return self.vlm.get_output_embeddings()

    def get_encoder(self, modality=None):
        return self.vlm.get_encoder(modality) if modality else self.vlm.get_encoder()

    def get_decoder(self):
        return self.vlm.get_decoder()

    def save_pretrained(self, save_directory, **kwargs):
        """Configuration and new weights; the model and the tag encoder stay where their ids say."""
        if self.config.vlm is None or self.config.tag_encoder is None:
            raise ValueError(
                f"config.vlm={self.config.vlm!r} and config.tag_encoder={self.config.tag_encoder!r}: what is saved "
                "loads both by their ids; set them."
            )
        os.makedirs(save_directory, exist_ok=True)
        state = {name: value for name, value in self.state_dict().items() if self.is_new(name)}
        save_file(
            {k: v.contiguous() for k, v in state.items()}, os.path.join(save_directory, WEIGHTS), {"format": "pt"}
        )
        self.config.architectures = [type(self).__name__]
        if self._auto_class is not None:
            custom_object_save(self, save_directory, config=self.config)
        self.config.save_pretrained(save_directory)
        try:  # so that the folder is all that a caller has to name
            AutoProcessor.from_pretrained(self.config.vlm).save_pretrained(save_directory)
        except (OSError, ValueError):
            logger.warning_once(f"{self.config.vlm}: its processor is not within reach and was not saved (said once).")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """
        The model and the tag encoder by their ids, and the new weights of a folder or repository.

        Args:
            **kwargs: `dtype`, `trust_remote_code`, `quantization_config` of loading the model.

        Raises:
            ValueError: weights are missing, or belong to another configuration.
        """
        config = config or VlmRouterConfig.from_pretrained(pretrained_model_name_or_path)
        names = ("dtype", "trust_remote_code", "quantization_config")
        options = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        fields = {
            name: value for name, value in config.to_diff_dict().items() if name in VlmRouterConfig.__annotations__
        }
        fields.setdefault("tag_separator_ids", None)  # as its statistics were made
        sources = (fields.pop("vlm"), fields.pop("tag_encoder"))
        model = cls.from_vlm(*sources, **options, **fields)
        weights = load_file(cached_file(pretrained_model_name_or_path, WEIGHTS))
        missing, unexpected = model.load_state_dict(weights, strict=False)
        lost = [*unexpected, *(name for name in missing if cls.is_new(name))]
        if lost:
            raise ValueError(
                f"{pretrained_model_name_or_path}: weights and configuration differ, first in {lost[0]!r}."
            )
        for module in model.route.modules():
            module.train(False)  # statistics derive their verdicts
        return model


def image_owner(vlm):
    """The module whose `get_image_features` fills the placeholders of a model, or `None`."""
    if vlm.config.model_type in ("mllama", "kosmos-2", "kosmos-2.5"):  # their images enter elsewhere
        return None
    # An encoder that reads images itself (T5Gemma 2) is asked by its own forward, past the model's method.
    encoder = [vlm.get_encoder()] if vlm.config.is_encoder_decoder else []
    return next((owner for owner in (*encoder, vlm.base_model, vlm) if hasattr(owner, "get_image_features")), None)


def _main(features):
    """Which field of what `get_image_features` returned becomes the image tokens, or `None`."""
    # Llama 4 projects the tower's states, and Fuyu's one linear layer makes nothing but them.
    return next((name for name in ("pooler_output", "last_hidden_state") if features.get(name) is not None), None)


def _no_place(vlm):
    return ValueError(
        f"vlm={type(vlm).__name__} ({vlm.config.model_type}) fills no placeholders by get_image_features, where a "
        "router could stand: take another family."
    )


def attention_layers(vlm):
    """A pattern for the names of the linear layers in a language model's attention, as PEFT takes it."""
    decoder = vlm
    while hasattr(decoder, "get_decoder") and (inner := decoder.get_decoder()) is not decoder:
        decoder = inner
    prefix = next(name for name, module in vlm.named_modules() if module is decoder)
    linear = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    names = sorted({name.rpartition(".")[2] for name in linear if re.search("attn|attention", name, re.IGNORECASE)})
    if not names:
        raise ValueError(f"vlm={type(vlm).__name__} has no linear layers in its attention: name lora.target_modules.")
    return rf"{re.escape(prefix)}\..*\.({'|'.join(map(re.escape, names))})"


def _shapes(vlm, example, source, options, router_type):
    """Width of image tokens and shape of the tower's states, read off one image."""
    if example is None:
        from PIL import Image

        from .image_reliability import image_inputs

        processor = AutoProcessor.from_pretrained(source, **options)
        example = image_inputs(processor, Image.new("RGB", (224, 224), (127, 127, 127)))
    read = image_owner(vlm).get_image_features
    given = image_arguments(read, on_model(vlm, example))
    width = vlm.get_input_embeddings().weight.shape[1]
    if given is not None:
        with torch.no_grad():
            features = read(**given, return_dict=True)
        # Tokens of all images in one row: which are whose could not be told.
        if _main(features) is None or features[_main(features)][0].ndim != 2:
            raise _no_place(vlm)
        width = features[_main(features)][0].shape[-1]
    if router_type != "reliability":
        return {"width": width}
    states = tower_states(vlm, example)
    return {"width": width, "tower_width": states[-1].shape[-1], "tower_layers": len(states) - 1}


def _separators(tag_encoder):
    """Separators of tags in a tag encoder's tokenizer, or `None` where there is no tokenizer to ask."""
    try:
        return None if tag_encoder is None else separator_ids(tag_encoder)
    except (OSError, ValueError):
        logger.warning_once(
            f"tag_encoder={tag_encoder!r} has no tokenizer within reach: every token counts as a tag of its own; name "
            "tag_separator_ids (said once)."
        )
        return None


def _read_by_router(arguments):
    """
    Takes what the router reads of N images out of the arguments of a call: tags (ids, mask and scores, (N, L)) and
    question (ids and mask, (N, Q)), each or `None`.
    """
    return _rows_of(arguments, TAGS), _rows_of(arguments, QUESTION)


def _images_in(arguments):
    """Names of pixels among the arguments of a call."""
    return [name for name in PIXELS if arguments.get(name) is not None]


def _rows_of(arguments, names):
    given = {name: arguments.pop(name, None) for name in names}
    missing = [name for name, rows in given.items() if rows is None]
    if len(missing) == len(names):
        return None
    if missing:
        raise ValueError(f"{', '.join(missing)} is None, but comes with {', '.join(names)}: pass all, or none.")
    return tuple(rows.bool() if name.endswith("_mask") else rows for name, rows in given.items())


VlmRouterConfig.register_for_auto_class()
RoutedVlm.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["RoutedVlm"]
