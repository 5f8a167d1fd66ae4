"""LoRA adapters (arXiv 2106.09685) beside the model: many at once, each for the samples that ask for it."""
