"""Paced slots: CPU processes that take as long for everything as an accelerator would, by a model of its costs."""
