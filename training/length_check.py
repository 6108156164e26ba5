"""Whether a picture fits into a row, seen from the backbones' configurations, before a weight is read."""

from poise.modeling import PoiseConfig
from poise.modeling.backbones import composite_config
from poise.training.assembly import backbones_of, fields_of
from poise.training.recipe import Recipe


def check_length(recipe: Recipe) -> None:
    """
    Raises:
        ValueError: `data.max_length` leaves no room beside one picture's placeholders, which are never cut; or the
            configuration of the model contradicts its backbones.
    """
    config = composite_config(PoiseConfig, **backbones_of(recipe), **fields_of(recipe))
    max_length = recipe.data["max_length"]
    picture = config.num_image_tokens + config.num_prompt_tokens
    if max_length is not None and max_length <= picture:
        raise ValueError(
            f"data.max_length={max_length} leaves no room for text: one picture takes {config.num_image_tokens} image "
            f"and {config.num_prompt_tokens} soft-prompt tokens, which are never cut; set it well above {picture}"
        )
