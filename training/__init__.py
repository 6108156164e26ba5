"""Stages of training: trainer, arguments, recipes, tiny backbones."""
