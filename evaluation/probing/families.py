"""What families of vision-language models do otherwise than the rest of transformers, by `model_type`.

Everything else is found by transformers' interface (`get_decoder`, `get_image_features`, `get_input_embeddings`, the
configuration). A family needs a line here only where that interface does not tell.
"""

# An own `generate` may go around `get_image_features` or around `forward`, as BLIP-2's does; theirs does not.
GENERATES_BY_FORWARD = {"janus", "poise"}

# Feature rows before the patches of an image that show the whole of it.
WHOLE_IMAGE_TOKENS = {"florence2": 1}

# Where the image goes instead of into places of the sequence.
NO_IMAGE_TOKENS = {
    "mllama": "its image enters by cross-attention layers, so no place of the sequence holds it",
    "idefics": "its image enters by cross-attention layers, so no place of the sequence holds it",
    "blip": "its image enters by cross-attention, so no place of the sequence holds it",
    "kosmos-2": "its text model merges the image itself, so `get_image_features` is not what it reads",
    "kosmos-2.5": "its text model merges the image itself, so `get_image_features` is not what it reads",
    "git": "its image is put before the text inside the model, so no placeholder holds it",
    "udop": "its image is added to the words that stand on it, so no place of the sequence holds it",
}

# What has no question that a language model reads word by word: nothing of it can be looked into.
NO_PROMPT = {
    "pix2struct": "its question is drawn into the image",
    "vision-encoder-decoder": "it reads no question",
    "evolla": "it reads proteins, no images",
    "diffusion_gemma": "it writes blocks of words by diffusion, not one after another",
}

# Modules whose outputs are queries with no place on the image, by their classes' names.
QUERY_MODULES = ("QFormer", "Perceiver", "Resampler", "AriaProjector", "DeepseekOcr2Vision")
