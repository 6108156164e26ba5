"""Drawn scenes: images of shapes with questions, captions, boxes and tags, made from a seed."""
