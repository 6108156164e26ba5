"""A Gradio Space for a published model: the folder, and the code that runs in it."""
