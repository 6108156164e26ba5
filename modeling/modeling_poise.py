"""The Poise model: frozen backbones, and what routes information between them.

    pixel_values ─ vision tower ─ projector ──────────────┐
                                                          ├─ information router ─ language model
    tags + scores ─ tag encoder ─ dynamic soft prompt ────┤
    input_ids ─ token embeddings ─────────────────────────┘

Every picture owns a run of P + K placeholder tokens in `input_ids`: P image tokens, then K soft-prompt tokens. They are
made together in `get_image_features`, where the route between those two streams happens; a router that also reads the
question works where the streams are merged, once, at prefill.
"""

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .adapter_repository import NAMES_AS_THEY_ARE, is_adapter_repository, load_adapter_repository
from .backbones import keep_quantized_weights_trainable, load_backbones, mark_initialized, quantize_composite
from .configuration_poise import PoiseConfig
from .generation_poise import PoiseGenerationMixin
from .information_router import build_router
from .outputs_poise import PoiseImageFeatures, PoiseModelOutput, PoiseOutput
from .pretrained_poise import PoisePreTrainedModel, build_backbones, without_pooler
from .projectors import build_projector
from .soft_prompt import build_soft_prompt
from .stream_merging import StreamMerging
from .streams import Streams
from .tag_statistics import score_statistics, tag_words
from .task_routed_adapters import build_task_adapters, hook_adapters
from .vision_features import read_states, run_tower

STATES_ON_REQUEST = {"output_hidden_states": "hidden_states", "output_attentions": "attentions"}


class PoiseModel(StreamMerging, PoisePreTrainedModel):
    """
    Everything but the language model's head: merges the streams and returns the language model's hidden states.

    `language_model` is the whole `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`, head included, so that scaling and
    tying inside the head stay the backbone's own business.
    """

    def __init__(self, config: PoiseConfig, backbones: dict[str, nn.Module] | None = None):
        super().__init__(config)
        backbones = backbones or build_backbones(config)
        self.vision_tower = without_pooler(backbones["vision"])
        self.projector = build_projector(config)
        if config.soft_prompt_type == "dynamic":
            self.tag_encoder = without_pooler(backbones["tag_encoder"])
        self.soft_prompt = build_soft_prompt(config)
        self.router = build_router(config)
        self.language_model = backbones["text"]
        # The language model may have copied its configuration; one object keeps resizing and saving in step.
        config.text_config = self.language_model.config
        self.task_adapters = build_task_adapters(config, self.language_model)
        self.task_ids: torch.LongTensor | None = None  # of the current batch; the adapters' hooks read it
        hook_adapters(self)
        self.post_init()
        # T5 keeps its "wo" in float32 when loaded in float16. That name is searched anywhere, and would find the tag
        # encoder's "word_embeddings", too.
        kept = tuple(f".{name}" for name in getattr(self, "_keep_in_fp32_modules", ()))
        names = [name for name, _ in self.language_model.named_modules(prefix="language_model")]
        self._keep_in_fp32_modules = {name for name in names if name.endswith(kept)}

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_encoder(self, modality=None):
        return self.vision_tower if modality == "image" else self.language_model.get_encoder()

    def get_decoder(self):
        return self.language_model.get_decoder()

    def train(self, mode=True):
        super().train(mode)
        # A frozen tower is a function: dropout inside it would only blur what the router calls typical.
        for tower in (self.vision_tower, getattr(self, "tag_encoder", None)):
            if tower is not None and not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    # ---- streams -------------------------------------------------------------------------------------------------

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor | None = None,
        tag_input_ids: torch.LongTensor | None = None,
        tag_attention_mask: torch.LongTensor | None = None,
        tag_scores: torch.FloatTensor | None = None,
        vision_features: torch.FloatTensor | None = None,
        image_profile: torch.FloatTensor | None = None,
        tag_features: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoiseImageFeatures:
        """
        Image tokens and soft-prompt tokens of N pictures.

        Args:
            pixel_values (N, 3, H, W): pictures; or what `encode_image` made of them before: `vision_features`
                (N, S, P, Dv) and, for `router_type="reliability"`, `image_profile` (N, 6·L).
            tag_input_ids, tag_attention_mask, tag_scores (N, L): the pictures' tags as `PoiseProcessor` makes them; an
                all-zero mask row, or none of the three, is a picture without tags.
            tag_features (N, L, Dt): what a frozen tag encoder made of them before (`soft_prompt.encode`).
            output_hidden_states, output_attentions (`bool`, *optional*): also return the vision tower's; by default as
                `config` says. The tower's `last_hidden_state` comes with every picture that it reads.

        Raises:
            ValueError: neither pictures nor features, or tags for another number of pictures.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("pixel_values and vision_features: give exactly one of them.")
        seen = {}
        if vision_features is None:
            asked = states_asked_for(self.config, kwargs)
            outputs = run_tower(self.vision_tower, pixel_values, self.config, **asked)
            vision_features, image_profile = read_states(outputs, self.config)
            # States that only a router read are not kept alive.
            fields = ["last_hidden_state", *(STATES_ON_REQUEST[flag] for flag in asked)]
            seen = {field: outputs.get(field) for field in fields}
        if self.config.router_type == "reliability" and image_profile is None:
            raise ValueError(
                "image_profile=None, but router_type='reliability' judges pictures by it: pass what encode_image "
                "returned beside vision_features."
            )
        num_images = vision_features.shape[0]
        if tag_input_ids is not None and tag_input_ids.shape[0] != num_images:
            raise ValueError(
                f"tag_input_ids has {tag_input_ids.shape[0]} rows for {num_images} pictures: give one row of tags per "
                "picture, all-zero in tag_attention_mask for a picture without tags."
            )
        image = self.projector(vision_features.to(self.projector_dtype))  # (N, P, D)
        if tag_input_ids is not None and (tag_attention_mask is None or tag_scores is None):
            raise ValueError("tag_input_ids comes with tag_attention_mask and tag_scores: pass all three, or none.")
        tag_mask = None if tag_attention_mask is None else tag_attention_mask.bool()  # (N, L)
        tags = (tag_input_ids, tag_mask, tag_scores)  # (N, L) each
        read_scores = self._read_scores(vision_features, image_profile, *tags)  # (N, L)
        prompt = self._prompt_tokens(num_images, image, tag_input_ids, tag_mask, read_scores, tag_features)  # (N, K, D)
        statistics = self._statistics(vision_features, image_profile, *tags)
        streams = self._image_streams(image, prompt, statistics)
        weights = None
        if self.router is not None and self.config.router_scope == "image":
            streams, weights = self.router(streams)
        return PoiseImageFeatures(
            pooler_output=list(torch.cat([streams.image, streams.text], dim=1)),  # N × (P + K, D)
            image_hidden_states=streams.image,
            soft_prompt_hidden_states=streams.text,
            router_weights=weights,
            **statistics,
            **seen,
        )

    @property
    def projector_dtype(self):
        return next(self.projector.parameters()).dtype

    def _read_scores(self, vision_features, image_profile, tag_input_ids, tag_mask, tag_scores):
        """The scores that the soft prompt reads, (N, L): the tagger's, or what a router leaves of them."""
        if self.router is None or not self.config.verifies_tags:
            return tag_scores
        if tag_input_ids is not None:
            patches = vision_features[:, -1].detach()  # (N, P, Dv)
            return self.router.read_scores(patches, image_profile, tag_input_ids, tag_mask, tag_scores)
        if self.training:
            # Statistics are gathered from all processes, of which others may have tags.
            none = torch.zeros(len(vision_features), 1, dtype=torch.long, device=vision_features.device)  # (N, 1)
            self.router.read_scores(vision_features[:, -1].detach(), image_profile, none, none.bool(), none.float())
        return None

    def _prompt_tokens(self, num_images, image, *tags):
        if self.soft_prompt is None:
            return image[:, :0]  # (N, 0, D)
        prompt = self.soft_prompt(num_images, getattr(self, "tag_encoder", None), *tags)
        return prompt.to(image.device, image.dtype)  # (N, K, D)

    def _image_streams(self, image, prompt, statistics):
        """One item per picture: its image tokens against its soft-prompt tokens."""
        everything = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)  # (N, P)
        prompt_mask = torch.ones(prompt.shape[:2], dtype=torch.bool, device=image.device)  # (N, K)
        return Streams(image, everything, prompt, prompt_mask, prompt_mask, is_real=everything[:, 0], **statistics)

    def _statistics(self, vision_features, image_profile, tag_input_ids, tag_mask, tag_scores):
        """What the reliability router judges the streams by, as fields of `Streams`; nothing for other routers."""
        if self.config.router_type != "reliability":
            return {}
        if tag_input_ids is None:
            tag_input_ids = torch.zeros(len(vision_features), 1, dtype=torch.long, device=vision_features.device)
            tag_mask, tag_scores = tag_input_ids.bool(), tag_input_ids.float()  # (N, 1)
        return {
            "image_profile": image_profile.float(),  # (N, 6L)
            "image_content": vision_features[:, -1].detach().float().mean(1),  # (N, Dv)
            "tag_words": tag_words(tag_input_ids, tag_mask, tag_scores),  # (N, R)
            "tag_scores": score_statistics(tag_mask, tag_scores),  # (N, 5)
            "has_tags": tag_mask.any(-1),  # (N,)
        }

    def _stand_in(self):
        """
        Zero, through a blank picture and every trainable module: a text-only batch then still gives each of them a
        gradient, and processes that wait for one another do not hang.
        """
        new = [module for module in (self.projector, self.soft_prompt, self.router) if module is not None]
        if not any(parameter.requires_grad for module in new for parameter in module.parameters()):
            return 0.0
        size = self.config.vision_image_size or self.config.vision_config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        blank = torch.zeros(1, 3, height, width, device=self.device, dtype=self.vision_tower.dtype)
        tags = (None, None, None)  # ids, mask, scores
        if self.config.soft_prompt_type == "dynamic":
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            tags = (ids, ids == 0, ids.float() + 1)
        vision_features, profile = read_states(run_tower(self.vision_tower, blank, self.config), self.config)
        image = self.projector(vision_features.to(self.projector_dtype))  # (1, P, D)
        self._read_scores(vision_features, profile, None, None, None)
        prompt = self._prompt_tokens(1, image, *tags)  # (1, K, D)
        streams = self._image_streams(image, prompt, self._statistics(vision_features, profile, *tags))
        streams.is_real = torch.zeros_like(streams.is_real)
        if self.router is not None:
            streams, _ = self.router(streams)
        untouched = sum(parameter.sum() for module in new for parameter in module.parameters())
        return 0.0 * (streams.image.sum() + streams.text.sum() + untouched)

    # ---- forward -------------------------------------------------------------------------------------------------

    def encode_features(self, mm_encoder_outputs, **inputs):
        """Features given by `generate` (already encoded once), or encoded here, or `None` for a text-only batch."""
        given = (mm_encoder_outputs or {}).get("image")
        has_pictures = inputs["pixel_values"] is not None or inputs["vision_features"] is not None
        if given is not None and has_pictures:
            raise ValueError("pixel_values and mm_encoder_outputs: give only one of them.")
        if given is not None or not has_pictures:
            return given
        return self.get_image_features(**inputs, return_dict=True)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        tag_input_ids: torch.LongTensor | None = None,
        tag_attention_mask: torch.LongTensor | None = None,
        tag_scores: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        vision_features: torch.FloatTensor | None = None,
        image_profile: torch.FloatTensor | None = None,
        tag_features: torch.FloatTensor | None = None,
        prompt_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        encoder_outputs=None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        task_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoiseModelOutput:
        self.task_ids = task_ids
        features, weights = None, None
        if encoder_outputs is None:
            inputs_embeds, features, weights = self.read_inputs(
                input_ids, inputs_embeds, attention_mask, mm_encoder_outputs, None, prompt_mask,
                pixel_values=pixel_values, tag_input_ids=tag_input_ids, tag_attention_mask=tag_attention_mask,
                tag_scores=tag_scores, vision_features=vision_features, image_profile=image_profile,
                tag_features=tag_features,
            )  # fmt: skip
        if self.config.is_encoder_decoder:
            outputs = self._encoder_decoder_states(
                inputs_embeds, attention_mask, encoder_outputs, decoder_input_ids, decoder_attention_mask,
                decoder_inputs_embeds, past_key_values, use_cache, **kwargs,
            )  # fmt: skip
        else:
            outputs = self.language_model.base_model(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=past_key_values, use_cache=use_cache, **kwargs,
            )  # fmt: skip
        return PoiseModelOutput(**{k: v for k, v in outputs.items() if k in PoiseModelOutput.__dataclass_fields__},
                                **stream_outputs(features, weights))  # fmt: skip

    def read_inputs(self, input_ids, inputs_embeds, attention_mask, mm_encoder_outputs, labels, prompt_mask, **inputs):
        """Encode the pictures, merge the streams: (embeddings (B, T, D), features or None, weights or None)."""
        features = self.encode_features(mm_encoder_outputs, **inputs)
        prompt_mask = self.prompt_mask_for(labels, prompt_mask, features is not None)
        embeddings, weights = self.embed_streams(input_ids, inputs_embeds, attention_mask, features, prompt_mask)
        return embeddings, features, weights

    def _encoder_decoder_states(
        self, inputs_embeds, attention_mask, encoder_outputs, decoder_input_ids, decoder_attention_mask,
        decoder_inputs_embeds, past_key_values, use_cache, **kwargs,
    ):  # fmt: skip
        """Encoder and decoder of the language model without its head, as `PoiseModelOutput` fields."""
        if encoder_outputs is None:
            encoder_outputs = self.language_model.get_encoder()(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, return_dict=True, **kwargs
            )
        decoded = self.language_model.get_decoder()(
            input_ids=decoder_input_ids, attention_mask=decoder_attention_mask, inputs_embeds=decoder_inputs_embeds,
            encoder_hidden_states=encoder_outputs[0], encoder_attention_mask=attention_mask,
            past_key_values=past_key_values, use_cache=use_cache, return_dict=True, **kwargs,
        )  # fmt: skip
        return PoiseModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            encoder_attentions=getattr(encoder_outputs, "attentions", None),
        )


class PoiseForConditionalGeneration(PoisePreTrainedModel, PoiseGenerationMixin):
    """
    A vision-language model with an information router and a soft prompt, for captioning, questions and grounding.

    `from_backbones` builds a new one from pretrained parts, `from_pretrained` loads a finished one.
    """

    def __init__(self, config: PoiseConfig, backbones: dict[str, nn.Module] | None = None):
        super().__init__(config)
        self.model = PoiseModel(config, backbones)
        self.post_init()
        if self.can_generate():
            self._inherit_generation_config()

    def _inherit_generation_config(self):
        """The language model's way to generate, with one more rule: a placeholder is never an answer."""
        inherited = self.model.language_model.generation_config
        if inherited is not None:
            self.generation_config = type(inherited).from_dict(inherited.to_dict())
        self.generation_config.suppress_tokens = [self.config.image_token_id]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As every `from_pretrained`; a repository that holds only adapters gets its backbones from theirs."""
        if is_adapter_repository(pretrained_model_name_or_path, **kwargs):
            return load_adapter_repository(cls, PoiseConfig, pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def load_adapter(self, peft_model_id=None, adapter_name=None, **kwargs):
        """As every transformers model, but the adapter's names are taken as they are."""
        return super().load_adapter(peft_model_id, adapter_name, **{"weight_mapping": NAMES_AS_THEY_ARE, **kwargs})

    @classmethod
    def from_backbones(
        cls, vision, text, tag_encoder=None, quantization_config=None, dtype=torch.float32, **fields
    ) -> "PoiseForConditionalGeneration":
        """
        Assemble a new model from pretrained, frozen parts; projector, soft prompt and router start untrained.

        Args:
            vision (`str`): Hub id or folder of the vision tower (of CLIP or SigLIP, the vision half is taken).
            text (`str`): Hub id or folder of the language model, decoder-only or encoder-decoder.
            tag_encoder (`str`, *optional*): of the BERT-like tag encoder; needed for `soft_prompt_type="dynamic"`.
            quantization_config (*optional*): loads the language model in 4 or 8 bits.
            dtype (`torch.dtype`, defaults to `torch.float32`): of everything that is not quantized.
            **fields: fields of [`PoiseConfig`].

        Returns:
            A model in evaluation mode whose backbones are frozen.

        Raises:
            ValueError: a field contradicts another, or a dynamic soft prompt has no tag encoder.
        """
        config, backbones = load_backbones(
            PoiseConfig, vision, text, tag_encoder, quantization_config=quantization_config, dtype=dtype, **fields
        )
        for backbone in backbones.values():
            mark_initialized(backbone)
        model = cls(config, backbones)
        new_modules = (model.model.projector, model.model.soft_prompt, model.model.router, model.model.task_adapters)
        for module in new_modules:
            if module is not None:
                module.to(device=backbones["text"].device, dtype=dtype)
        if quantization_config is not None:
            quantize_composite(model)
            keep_quantized_weights_trainable(model)
        model.freeze_backbones()
        return model.eval()

    def freeze_backbones(self):
        """Stop gradients to the vision tower, the tag encoder and the language model; new modules stay trainable."""
        for name in ("vision_tower", "tag_encoder", "language_model"):
            if (module := getattr(self.model, name, None)) is not None:
                module.requires_grad_(False)

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.model.language_model.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.model.language_model.set_output_embeddings(value)

    def get_encoder(self, modality=None):
        return self.model.get_encoder(modality)

    def get_decoder(self):
        return self.model.get_decoder()

    def get_image_features(self, *args, **kwargs):
        return self.model.get_image_features(*args, **kwargs)

    def prepare_decoder_input_ids_from_labels(self, labels):
        return self.model.language_model.prepare_decoder_input_ids_from_labels(labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        tag_input_ids: torch.LongTensor | None = None,
        tag_attention_mask: torch.LongTensor | None = None,
        tag_scores: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        vision_features: torch.FloatTensor | None = None,
        image_profile: torch.FloatTensor | None = None,
        tag_features: torch.FloatTensor | None = None,
        prompt_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        encoder_outputs=None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        task_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoiseOutput:
        """
        Args:
            input_ids (B, T), attention_mask (B, T): text with one run of placeholders per picture.
            pixel_values (N, 3, H, W): the pictures of the batch in reading order; or `vision_features` (N, S, P, Dv)
                and `image_profile` (N, 6·L), computed before.
            tag_input_ids, tag_attention_mask, tag_scores (N, L): their tags, and `tag_features` (N, L, Dt), if computed
                before; see `PoiseModel.get_image_features`.
            labels (B, T), or (B, T') for an encoder-decoder: -100 where nothing is supervised.
            prompt_mask (B, T): what the router may see; derived from `labels` when left out.
            task_ids (B,), or (B, T) for packed rows: places in `ADAPTER_TASKS`, read by task-routed adapters; the first
                task when left out.
            num_items_in_batch: divisor of the summed loss, given by `Trainer` under gradient accumulation.

        Returns:
            [`PoiseOutput`] with `loss` and `logits` (B, T, V).
        """
        self.model.task_ids = task_ids
        targets = {name: kwargs.pop(name) for name in ("num_items_in_batch", "shift_labels") if name in kwargs}
        features, weights = None, None
        if encoder_outputs is None:
            inputs_embeds, features, weights = self.model.read_inputs(
                input_ids, inputs_embeds, attention_mask, mm_encoder_outputs, labels, prompt_mask,
                pixel_values=pixel_values, tag_input_ids=tag_input_ids, tag_attention_mask=tag_attention_mask,
                tag_scores=tag_scores, vision_features=vision_features, image_profile=image_profile,
                tag_features=tag_features,
            )  # fmt: skip
        arguments = {"attention_mask": attention_mask, "past_key_values": past_key_values, "return_dict": True}
        if self.config.is_encoder_decoder:
            if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)  # (B, T')
            arguments.update(
                inputs_embeds=None if encoder_outputs is not None else inputs_embeds,
                encoder_outputs=encoder_outputs, decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask, decoder_inputs_embeds=decoder_inputs_embeds,
                use_cache=False if labels is not None else use_cache,
            )  # fmt: skip
        else:
            arguments.update(
                inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=use_cache,
                logits_to_keep=logits_to_keep,
            )  # fmt: skip
        outputs = self.model.language_model(**arguments, **kwargs)
        logits = outputs.logits  # (B, T, V)
        if self.config.is_encoder_decoder and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = logits[:, kept]
        loss = self._loss(logits, labels, **targets) if labels is not None else None
        own = ("loss", "logits")
        return PoiseOutput(loss=loss, logits=logits, **stream_outputs(features, weights),
                           **{k: v for k, v in outputs.items()
                              if k in PoiseOutput.__dataclass_fields__ and k not in own})  # fmt: skip

    def _loss(self, logits, labels, num_items_in_batch=None, shift_labels=None):
        # An encoder-decoder's labels are aligned with its logits already; a decoder's are shifted inside the loss, or
        # before, by who splits the sequence over devices.
        if self.config.is_encoder_decoder:
            shift_labels = labels
        return self.loss_function(
            logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size,
            num_items_in_batch=num_items_in_batch, shift_labels=shift_labels,
        )  # fmt: skip

    def save_pretrained(self, save_directory, **kwargs):
        # One class serves three Auto classes; transformers writes only the registered one into `auto_map`.
        module = type(self).__module__.split(".")[-1]
        reference = f"{module}.{type(self).__name__}"
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoModelForMultimodalLM": reference,
            "AutoModel": f"{module}.{PoiseModel.__name__}",
        }
        return super().save_pretrained(save_directory, **kwargs)


def states_asked_for(config, arguments):
    """Which of `STATES_ON_REQUEST` a call or, where it says nothing, the configuration wants."""
    wanted = {flag: arguments.get(flag) for flag in STATES_ON_REQUEST}
    wanted = {flag: getattr(config, flag, False) if value is None else value for flag, value in wanted.items()}
    return {flag: value for flag, value in wanted.items() if value}


def stream_outputs(features, weights):
    """The streams' part of an output."""
    if features is None:
        return {}
    return {
        "image_hidden_states": features.image_hidden_states,
        "soft_prompt_hidden_states": features.soft_prompt_hidden_states,
        "router_weights": weights,
    }


PoiseConfig.register_for_auto_class()
PoiseModel.register_for_auto_class("AutoModel")
PoiseForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["PoiseForConditionalGeneration", "PoiseModel", "PoisePreTrainedModel"]
