"""The processor of a recipe without its model: what reads data needs no weights."""

from poise.modeling import PoiseConfig
from poise.modeling.backbones import composite_config, placeholder_token
from poise.processing import PoiseProcessor
from poise.training.assembly import backbones_of, fields_of
from poise.training.recipe import Recipe


def processor_of(recipe: Recipe) -> PoiseProcessor:
    """The processor that `assemble` makes, from the backbones' configurations and tokenizers alone."""
    backbones = backbones_of(recipe)
    config = composite_config(PoiseConfig, **backbones, **fields_of(recipe))
    config.image_token_id, _ = placeholder_token(backbones["text"])
    return PoiseProcessor.from_backbones(**backbones, config=config, **recipe.processor)
