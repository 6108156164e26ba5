"""The study: every router, soft prompt and language model over seeds: `poise study`."""
