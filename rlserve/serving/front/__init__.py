"""The HTTP side: one route a file, and what all of them go through."""
