"""The sentence encoder of tags with scores: `poise tag-encoder`."""
