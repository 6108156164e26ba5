"""What `generate` must know of pictures: they are encoded once, repeated for beams, and read by an encoder at once."""

import torch
from transformers import GenerationMixin


class PoiseGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model whose streams are merged at prefill; every method overrides one of its hooks."""

    def _prefill(self, input_ids, generation_config, model_kwargs, is_first_iteration=True):
        if (
            generation_config.prefill_chunk_size is not None
            and self.config.router_scope == "prompt"
            and self.model.router is not None
        ):
            raise ValueError(
                f"prefill_chunk_size={generation_config.prefill_chunk_size}: router_scope='prompt' reads the whole "
                "prompt at once; set prefill_chunk_size=None, or use router_scope='image'."
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs):
        # Features computed before take the place of pixels, which is all that the inherited method looks for.
        features = model_kwargs.pop("vision_features", None)
        if features is not None:
            names = ("image_profile", "tag_input_ids", "tag_attention_mask", "tag_scores")
            others = {name: model_kwargs.pop(name) for name in names if name in model_kwargs}
            encoded = self.model.get_image_features(vision_features=features, **others, return_dict=True)
            model_kwargs["mm_encoder_outputs"] = {"image": encoded}
            return model_kwargs
        return super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor, model_kwargs, model_input_name, generation_config
    ):
        if self.config.is_encoder_decoder:
            if model_kwargs.get("encoder_outputs") is None:
                self._encode_merged_streams(inputs_tensor, model_kwargs, generation_config)
            return model_kwargs
        if self.model.router is not None and self.config.router_scope == "prompt":
            # Without a cache every step reads the whole sequence again: the router keeps to the prompt.
            prompt_mask = model_kwargs.get("attention_mask")  # (B, T)
            if prompt_mask is None:
                prompt_mask = torch.ones(inputs_tensor.shape[:2], dtype=torch.long, device=inputs_tensor.device)
            model_kwargs["prompt_mask"] = prompt_mask.bool()  # (B, T)
        return super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )

    def _encode_merged_streams(self, inputs_tensor, model_kwargs, generation_config):
        """An encoder reads the merged streams once; `generate` then repeats and caches its output."""
        inputs_embeds = model_kwargs.pop("inputs_embeds", None)
        from_ids = inputs_embeds is None and not inputs_tensor.is_floating_point()
        if not from_ids and inputs_embeds is None:
            inputs_embeds = inputs_tensor
        model_kwargs = self._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)
        features = model_kwargs.pop("mm_encoder_outputs", {}).get("image")
        self.model.task_ids = model_kwargs.get("task_ids")
        merged, _ = self.model.embed_streams(
            input_ids=inputs_tensor if from_ids else None,
            inputs_embeds=inputs_embeds,
            attention_mask=model_kwargs.get("attention_mask"),
            features=features,
        )  # (B, T, D)
        self._prepare_text_encoder_decoder_kwargs_for_generation(
            merged, model_kwargs, "inputs_embeds", generation_config
        )

    def _expand_multimodal_outputs(self, input_ids, mm_encoder_output, *args, **kwargs):
        # The inherited method repeats the pictures for every beam, but not what a router of scope "prompt" reads later.
        features = mm_encoder_output.get("image")
        place = {} if features is None else {id(tokens): i for i, tokens in enumerate(features.pooler_output)}
        expanded = super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        if features is not None and features.image_profile is not None:
            order = [place[id(tokens)] for tokens in features.pooler_output]
            for name in ("image_profile", "image_content", "tag_words", "tag_scores", "has_tags"):
                features[name] = features[name][order]  # (N·beams, ...)
        return expanded
