"""The tiny backbones that ship with Poise, and how they are made: `poise backbones`."""
