"""Decoding-time remedies for a vision-language model that does not look: VCD, M3ID, image CFG, PAI, MAD, and controls.

Every method reads the prompt a second time without, or with less of, the image, and adds what the image changes. The
second reading has a key-value cache of its own, runs through the model's own `forward`, and works for any
image-text-to-text model of transformers, in batches (left-padded), greedily or with sampling, with or without a cache:

    decoding = ContrastiveDecoding(model, inputs, "vcd", alpha=0.5)
    model.generate(**inputs, custom_generate=decoding)

This file needs transformers alone. As `custom_generate/generate.py` of a repository it is loaded by
`model.generate(**inputs, custom_generate="user/repository", trust_remote_code=True, decoding="vcd")`.
"""

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# The modality query of MAD and its three answers; the first two need the image.
MODALITY_QUESTION = "To answer this question, which is needed: the image, the text, or both? Question: {question}"
MODALITY_WORDS = ("image", "both", "text")

# Inputs of the length of the prompt: what stays, row by row, when the image's placeholders are taken out.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def guided(logits, contrast, strength):
    """
    l + strength · (l − l'), the form that VCD, M3ID, CFG and PAI share; exactly l at strength 0.

    Args:
        logits, contrast [B, V]; strength: number or [B, 1].
    """
    return logits + strength * (logits - contrast)  # (B, V)


def m3id(logits, contrast, step, decay, confidence):
    """
    M3ID (arXiv 2403.14003): the guidance (1 − γ_t) / γ_t, γ_t = exp(−decay · t), grows with the answer.

    Args:
        logits, contrast [B, V].
        step: tokens generated so far; the first token has t = 1.
        confidence: rows whose most likely token has at least this probability stay as they are; 1 leaves none out.
    """
    gamma = math.exp(-decay * (step + 1))
    unsure = logits.softmax(-1).amax(-1, keepdim=True) < confidence  # (B, 1)
    return torch.where(unsure | (confidence >= 1), guided(logits, contrast, (1 - gamma) / gamma), logits)  # (B, V)


def cut_off(scores, logits, beta):
    """Adaptive plausibility (Li et al., arXiv 2210.15097): −inf where the model's own p < beta · max p; [B, V] each."""
    if beta == 0:
        return scores
    return scores.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(beta), -math.inf)


@dataclass(frozen=True)
class Method:
    """
    A row of the table: what the second reading sees, how the two are combined, and the published strengths.

    `combine(logits, contrast, step, strengths)` takes logits [B, V] of both readings, and how many tokens there are.
    """

    source: str
    contrast: str | None = None  # "noise": a noisy image, "text": the prompt without its image, None: no second reading
    combine: Callable[..., torch.Tensor] = lambda logits, contrast, step, strengths: logits
    strengths: Mapping[str, float] = field(default_factory=dict)


METHODS = {
    "greedy": Method("the model's own distribution"),
    # What arXiv 2504.10020 asks for: two controls that do not look at the image at all.
    "cut_off": Method("arXiv 2210.15097; as a control, 2504.10020", strengths={"beta": 0.1}),
    "shifted_yes": Method("arXiv 2504.10020", strengths={"shift": 1.0}),
    "vcd": Method(
        "arXiv 2311.16922",
        "noise",
        lambda logits, contrast, step, s: guided(logits, contrast, s["alpha"]),
        {"alpha": 1.0, "beta": 0.1, "noise_step": 500},
    ),
    "m3id": Method(
        "arXiv 2403.14003",
        "text",
        lambda logits, contrast, step, s: m3id(logits, contrast, step, s["decay"], s["confidence"]),
        {"decay": 0.02, "confidence": 1.0},
    ),
    "cfg": Method(
        "arXiv 2306.17806, with the image as the condition",
        "text",
        lambda logits, contrast, step, s: guided(logits, contrast, s["guidance"] - 1),
        {"guidance": 1.5},
    ),
    "pai": Method(
        "arXiv 2407.21771",
        "text",
        lambda logits, contrast, step, s: guided(logits, contrast, s["gamma"] - 1),
        {"alpha": 0.2, "gamma": 1.1, "beta": 0.1, "first_layer": 2},
    ),
    "mad": Method(
        "arXiv 2601.21181, for the two modalities image and text",
        "noise",
        lambda logits, contrast, step, s: guided(logits, contrast, s["gamma"] * s["image_weight"]),
        {"gamma": 2.5, "beta": 0.1, "noise_step": 500},
    ),
}


def check_method(name, strengths):
    """
    The published strengths of a method with those that are named put in their place.

    Raises:
        ValueError: no such method, or it has no such strength.
    """
    if name not in METHODS:
        raise ValueError(f"decoding={name!r} is not known: choose one of {', '.join(METHODS)}.")
    known = METHODS[name].strengths
    unknown = sorted(set(strengths) - set(known))
    if unknown:
        raise ValueError(f"{unknown[0]}={strengths[unknown[0]]!r}: decoding {name!r} has {', '.join(known) or 'none'}.")
    merged = {**known, **strengths}
    for strength, value in merged.items():
        if not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"{strength}={value!r} of decoding {name!r} must be a finite number.")
    if not 0 <= merged.get("beta", 0) < 1:
        raise ValueError(
            f"beta={merged['beta']} of decoding {name!r} must be in [0, 1): a share of the top probability."
        )
    if not 0 <= merged.get("noise_step", 0) <= 999:
        raise ValueError(f"noise_step={merged['noise_step']} of decoding {name!r} must be in 0 … 999.")
    return merged


def diffused(pixels, step, seed, sizes=None):
    """
    Pixels after `step` of 1,000 steps of forward diffusion, sqrt(ᾱ) · x + sqrt(1 − ᾱ) · ε (arXiv 2311.16922).

    ᾱ is the running product of 1 − β with β on a sigmoid from 1e-5 to 5e-3, as in the published method. Every image is
    given the noise of the same seed, so that an answer does not depend on who else is in the batch.

    Args:
        pixels [N, ...], or [patches, C] with `sizes` (N), the number of patches of each image.
    """
    betas = torch.linspace(-6, 6, 1000, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    kept = float((1 - betas).cumprod(0)[int(step)])
    noised = []
    for image in pixels.split(1 if sizes is None else sizes):
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
        noise = torch.randn(image.shape, generator=generator).to(image.device, image.dtype)
        noised.append(math.sqrt(kept) * image + math.sqrt(1 - kept) * noise)
    return torch.cat(noised)  # as pixels


def noisy_inputs(inputs, step, seed):
    """Inputs whose images are `diffused`; tokens and everything else stay."""
    names = [name for name in inputs if "pixel_values" in name or name == "image_patches"]
    names = [name for name in names if torch.is_tensor(inputs[name]) and inputs[name].is_floating_point()]
    if not names:
        raise ValueError(f"inputs hold no pixel values to put noise on, only {', '.join(inputs)}.")
    grid = inputs.get("image_grid_thw")
    noised = {}
    for name in names:
        # Patches of all images in one row of rows, as Qwen-VL has them, are told apart by their grid.
        flat = grid is not None and inputs[name].ndim == 2
        noised[name] = diffused(inputs[name], step, seed, grid.prod(-1).tolist() if flat else None)
    return {**inputs, **noised}


def image_token(config):
    """Id of the token that an image's features replace, or `None` for a model that has none."""
    for name in ("image_token_id", "image_token_index"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None


def text_inputs(inputs, config):
    """The prompt without its images: placeholders taken out of every row, rows padded on the left again."""
    ids = inputs["input_ids"]  # (B, T)
    mask = inputs.get("attention_mask")
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()  # (B, T)
    if "image_embeds_position_mask" in inputs:  # Kosmos-2 marks the places in a mask of its own
        kept = kept & (inputs["image_embeds_position_mask"] == 0)
    if image_token(config) is not None:
        kept = kept & (ids != image_token(config))
    lengths = kept.sum(1)  # (B,)
    length = max(1, int(lengths.max()))
    padding = {"input_ids": _padding_id(config)}
    names = [name for name in TEXT_INPUTS if torch.is_tensor(inputs.get(name))]
    rows = {name: ids.new_full((len(ids), length), padding.get(name, 0)) for name in (*names, "attention_mask")}
    for i, count in enumerate(lengths.tolist()):
        for name in names:
            rows[name][i, length - count :] = inputs[name][i, kept[i]]
        rows["attention_mask"][i, length - count :] = 1
    decoder = {name: value for name, value in inputs.items() if name.startswith("decoder_")}
    return {**rows, **decoder}


def _padding_id(config):
    text = config.get_text_config()
    found = [getattr(text, name, None) for name in ("pad_token_id", "eos_token_id", "bos_token_id")]
    found = next((i for i in found if i is not None), 0)
    return found if isinstance(found, int) else found[0]


def _prepared(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
    """A `custom_generate` that generates nothing: it returns what `generate` has prepared."""
    return model, input_ids, generation_config, model_kwargs


class Reading:
    """
    A second prompt that is read along with the one which is being answered, with positions and a cache of its own.

    `generate` itself prepares it, whatever a family needs: encoded images, three-part positions, encoder outputs.
    """

    def __init__(self, model, inputs, settings):
        # BLIP-2 cannot generate without an image, its language model can.
        needs_image = inspect.signature(model.generate).parameters.get("pixel_values")
        if needs_image is not None and "pixel_values" not in inputs:
            model = getattr(model, "language_model", getattr(model, "text_model", model))
        found = model.generate(**inputs, generation_config=settings, custom_generate=_prepared)
        self.model, self.prompt, self.settings, self.arguments = found  # `prompt` (B, T)
        self.started = False

    def logits(self, answer):
        """Logits of the next token [B, V] in float32, after the tokens `answer` [B, t] that were generated so far."""
        ids = torch.cat([self.prompt, answer.to(self.prompt.device)], dim=1)  # (B, T + t)
        if not self.started:
            outputs = self.model._prefill(ids, self.settings, self.arguments)
        else:
            length = 1 if self.arguments["use_cache"] else None
            inputs = self.model.prepare_inputs_for_generation(ids, next_sequence_length=length, **self.arguments)
            outputs = self.model(**inputs, return_dict=True)
        self.started = True
        self.arguments = self.model._update_model_kwargs_for_generation(
            outputs, self.arguments, is_encoder_decoder=self.model.config.is_encoder_decoder
        )
        return outputs.logits[:, -1].float()  # (B, V)


class ContrastiveLogitsProcessor(LogitsProcessor):
    """Scores [B, V] of the model → those of a method; asks the second reading, if there is one, at every step."""

    def __init__(self, name, strengths, reading, prompt_length, yes_ids=(), outside=nullcontext):
        self.method, self.strengths, self.reading = METHODS[name], strengths, reading
        self.prompt_length, self.yes_ids, self.outside = prompt_length, list(yes_ids), outside

    def __call__(self, input_ids, scores):
        answer = input_ids[:, self.prompt_length :]  # (B, t)
        contrast = None
        if self.reading is not None:
            with self.outside():
                contrast = self.reading.logits(answer).to(scores.device)  # (B, V)
        combined = self.method.combine(scores, contrast, answer.shape[1], self.strengths)  # (B, V)
        if "shift" in self.strengths and answer.shape[1] == 0:
            combined = combined.clone()
            combined[:, self.yes_ids] += self.strengths["shift"]
        return cut_off(combined, scores, self.strengths.get("beta", 0))


class ContrastiveDecoding:
    """
    A method as `generate(custom_generate=...)` takes it.

    Args:
        model: any image-text-to-text model of transformers.
        inputs (`Mapping[str, torch.Tensor]`): what its processor returned, as it is given to `generate`, too.
        name (`str`, *optional*, defaults to `"vcd"`): a key of `METHODS`.
        seed (`int`, *optional*, defaults to 0): of the noise on images.
        yes_ids (`Sequence[int]`, *optional*): what "shifted_yes" shifts, first tokens of a yes; see `first_tokens`.
        modality_inputs (`Mapping[str, torch.Tensor]`, *optional*): for "mad", the same images with `MODALITY_QUESTION`.
        modality_ids (`Sequence[Sequence[int]]`, *optional*): for "mad", first tokens of each of `MODALITY_WORDS`.
        streamer (*optional*): as of `generate`, which does not pass it on to a `custom_generate`.
        **strengths: in place of the published ones.

    Raises:
        ValueError: an unknown method or strength, something that the method needs is missing, or beam search.

    Example:
        >>> decoding = ContrastiveDecoding(model, inputs, "m3id")
        >>> tokens = model.generate(**inputs, custom_generate=decoding, max_new_tokens=32)
    """

    def __init__(
        self,
        model,
        inputs,
        name="vcd",
        seed=0,
        yes_ids=(),
        modality_inputs=None,
        modality_ids=None,
        streamer=None,
        **strengths,
    ):
        self.strengths = check_method(name, strengths)
        self.model, self.inputs, self.name, self.seed = model, dict(inputs), name, seed
        self.yes_ids, self.streamer = yes_ids, streamer
        self.modality_inputs, self.modality_ids = modality_inputs, modality_ids
        if name == "shifted_yes" and not len(yes_ids):
            raise ValueError("decoding 'shifted_yes' needs yes_ids, the first tokens of a yes: see first_tokens.")
        if name == "mad" and (modality_inputs is None or modality_ids is None):
            raise ValueError("decoding 'mad' needs modality_inputs and modality_ids: the model is asked what it needs.")
        if name == "pai":
            _check_attention(model)

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        if generation_config.num_beams not in (None, 1):
            raise ValueError(f"num_beams={generation_config.num_beams}: decoding {self.name!r} takes 1, or sampling.")
        settings = _settings_of_reading(generation_config, input_ids.shape[1])
        strengths, reading = dict(self.strengths), None
        contrast = METHODS[self.name].contrast
        if contrast == "noise":
            reading = Reading(self.model, noisy_inputs(self.inputs, strengths["noise_step"], self.seed), settings)
        elif contrast == "text":
            reading = Reading(self.model, text_inputs(self.inputs, self.model.config), settings)
        if self.name == "mad":
            strengths["image_weight"] = self._image_weight(settings)
        attention = nullcontext()
        boost = None
        if self.name == "pai" and strengths["alpha"] != 0:
            if generation_config.cache_implementation not in (None, "dynamic"):
                kind = generation_config.cache_implementation
                raise ValueError(f"cache_implementation={kind!r}: decoding 'pai' needs 'dynamic', the default.")
            boost = ImageAttention(self._image_places(generation_config), strengths["alpha"], strengths["first_layer"])
            attention = boost.installed(self.model)
        outside = nullcontext if boost is None else boost.paused
        processor = ContrastiveLogitsProcessor(self.name, strengths, reading, input_ids.shape[1], self.yes_ids, outside)
        with attention:
            return model._sample(
                input_ids,
                logits_processor=LogitsProcessorList([processor, *logits_processor]),
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                streamer=self.streamer,
                **model_kwargs,
            )

    def _image_weight(self, settings):
        """MAD's self-assessment: the probability that the image is needed, among the three answers, [B, 1]."""
        reading = Reading(self.model, dict(self.modality_inputs), settings)
        logits = reading.logits(reading.prompt[:, :0])  # (B, V)
        likelihoods = [logits.softmax(-1)[:, list(ids)].sum(-1) for ids in self.modality_ids]  # 3 × (B,)
        image, both, text = likelihoods
        return ((image + both) / (image + both + text).clamp_min(1e-12))[:, None]  # (B, 1)

    def _image_places(self, generation_config):
        ids, repeats = self.inputs["input_ids"], generation_config.num_return_sequences or 1
        return (ids == image_token(self.model.config)).repeat_interleave(repeats, dim=0)  # (B, T)


def _settings_of_reading(generation_config, prompt_length):
    """The same settings for a prompt of another length, without what a reading has no use for."""
    settings = GenerationConfig(
        use_cache=generation_config.use_cache,
        num_return_sequences=generation_config.num_return_sequences,
        do_sample=generation_config.do_sample,
        max_new_tokens=generation_config.max_length - prompt_length,
        pad_token_id=generation_config.pad_token_id,
        bos_token_id=generation_config.bos_token_id,
        eos_token_id=generation_config.eos_token_id,
        decoder_start_token_id=generation_config.decoder_start_token_id,
    )
    settings.cache_implementation = generation_config.cache_implementation
    return settings


class ImageAttention:
    """
    PAI's attention: from the last token of the prompt on, the logits a of image tokens become a + alpha · |a|.

    The family's own eager attention computes it, given a mask that holds the difference, so that whatever else it does
    (soft caps, sinks, windows) stays as it is.

    Args:
        places [B, T] bool: image tokens of the prompt.
        alpha: strength.
        first_layer: earlier layers stay as they are.
    """

    name = "image_attention"

    def __init__(self, places, alpha, first_layer):
        self.places, self.alpha, self.first_layer = places, alpha, first_layer
        self.active = True

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **options):
        # query (B, H, Q, D), key and value (B, H_kv, K, D), attention_mask (B, 1, Q, K) additive or None
        eager = sys.modules[type(module).__module__].eager_attention_forward
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.active and self.first_layer <= (getattr(module, "layer_idx", None) or 0):
            change = self.change(query, key, scaling, options.get("softcap"))  # (B, H, Q, K)
            attention_mask = change if attention_mask is None else attention_mask[..., : key.shape[2]] + change
        return eager(module, query, key, value, attention_mask, scaling=scaling, **options)

    def change(self, query, key, scaling, softcap):
        """What is added to the attention logits, [B, H, Q, K]."""
        logits = query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT * scaling  # (B, H, Q, K)
        if softcap is not None:
            logits = softcap * (logits / softcap).tanh()
        prompt, length, queries = self.places.shape[1], key.shape[2], query.shape[2]
        # Without a cache all tokens are queries, and those before the prompt's last one stay as they are.
        asking = torch.ones(queries, dtype=torch.bool, device=key.device)  # (Q,)
        asking[: max(0, prompt - 1 - (length - queries)) if queries > 1 else 0] = False
        places = torch.nn.functional.pad(self.places.to(key.device), (0, max(0, length - prompt)))[:, :length]  # (B, K)
        boosted = places[:, None, None] & asking[:, None]  # (B, 1, Q, K)
        return torch.where(boosted, self.alpha * logits.abs(), 0.0).to(query.dtype)

    @contextmanager
    def installed(self, model):
        """The language model's self-attentions go through this object meanwhile."""
        config = model.config.get_text_config(decoder=True)
        before = config._attn_implementation
        ALL_ATTENTION_FUNCTIONS.register(self.name, self)
        ALL_MASK_ATTENTION_FUNCTIONS.register(self.name, eager_mask)
        config._attn_implementation = self.name
        try:
            yield
        finally:
            config._attn_implementation = before

    @contextmanager
    def paused(self):
        """Meanwhile attention is the model's own."""
        self.active = False
        try:
            yield
        finally:
            self.active = True


def _check_attention(model):
    text = model.config.get_text_config()
    elsewhere = model.config.is_encoder_decoder or getattr(text, "cross_attention_layers", None)
    if elsewhere or image_token(model.config) is None:
        raise ValueError(
            f"decoding 'pai' raises the attention of a decoder-only model to image tokens; {type(model).__name__} "
            "reads its image in another way: choose another method."
        )


def first_tokens(tokenizer, word):
    """First tokens of a word as an answer may begin with it: "yes", "Yes", " yes", " Yes"."""
    forms = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
    encoded = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
    return sorted({ids[0] for ids in encoded if ids and ids[0] != tokenizer.unk_token_id})


def generate(model, decoding="vcd", seed=0, yes_ids=(), modality_inputs=None, modality_ids=None, **kwargs):
    """
    `model.generate` with a method of `METHODS`: what a `custom_generate` repository is called through.

    Args:
        decoding (`str`): a key of `METHODS`.
        **kwargs: of `generate`, and strengths of the method by their names.

    Example:
        >>> model.generate(**inputs, custom_generate="user/repository", trust_remote_code=True, decoding="m3id")
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    if "inputs" in kwargs:
        kwargs["input_ids"] = kwargs.pop("inputs")
    strengths = {
        name: kwargs.pop(name) for name in METHODS.get(decoding, METHODS["greedy"]).strengths if name in kwargs
    }
    inputs = {name: value for name, value in kwargs.items() if torch.is_tensor(value)}
    method = ContrastiveDecoding(
        model, inputs, decoding, seed, yes_ids, modality_inputs, modality_ids, kwargs.get("streamer"), **strengths
    )
    return model.generate(**kwargs, custom_generate=method)
