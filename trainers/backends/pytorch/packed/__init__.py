"""Decoders of transformers' models on a CPU: samples end to end without padding, what they share computed once."""
