"""Where the commands look when they are told no place."""

from __future__ import annotations

DEFAULT_OUTPUT_DIR = "runs"
"""Folder that runs lie in."""
