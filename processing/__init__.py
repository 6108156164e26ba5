"""What goes into the model: processor, tags, task records, collators, scenes."""
