"""Alignment of two frozen encoders by their projectors alone: `poise align`."""
