"""The routes, one family a file. Each has ``router``."""
