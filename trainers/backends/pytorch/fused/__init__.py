"""Layers of transformers' models, computed with fewer and larger kernels on a GPU."""
