"""Runs scheduled steps through the model."""
