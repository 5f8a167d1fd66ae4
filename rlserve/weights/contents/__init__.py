"""What a version consists of, as it travels, and how it becomes the whole model that an engine loads."""
