"""Degradations of images, tags and questions, the same for a record on every machine."""
