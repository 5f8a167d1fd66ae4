"""Paged attention: one contract, one file a backend."""
