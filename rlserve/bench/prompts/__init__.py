"""Prompts of a wanted length: words, text with an exact number of tokens, or token ids."""
