"""A Ray cluster that is there already: ``ray job submit``."""
