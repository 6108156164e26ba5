"""How many tokens a vision tower puts before its patches (class token, registers), by `model_type`."""

PREFIX_TOKENS = {
    "siglip_vision_model": 0,
    "clip_vision_model": 1,
    "vit": 1,
    "dinov2": 1,
    "dinov2_with_registers": 1,  # plus `num_register_tokens`
    "dinov3_vit": 1,  # plus `num_register_tokens`
}


def count_prefix_tokens(vision_config, given=None):
    """
    Tokens before the patches in the tower's output; `given` (`vision_prefix_tokens` of a configuration) overrules.

    Raises:
        ValueError: the tower is not known and nothing is given.
    """
    if given is not None:
        return given
    model_type = vision_config.model_type
    if model_type not in PREFIX_TOKENS:
        raise ValueError(
            f"vision_config.model_type={model_type!r}: it is not known how many class or register tokens this "
            "tower puts before its patches; set vision_prefix_tokens."
        )
    return PREFIX_TOKENS[model_type] + getattr(vision_config, "num_register_tokens", 0)
