"""Vision-language models out of frozen unimodal backbones, with the two modalities kept in balance."""

__version__ = "0.1.0"
