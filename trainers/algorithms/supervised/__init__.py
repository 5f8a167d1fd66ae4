"""Algorithms that learn from a data set: nothing is generated, and nothing is rewarded."""
