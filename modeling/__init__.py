"""The model: configuration, vision towers, projectors, soft prompts, information routers."""
