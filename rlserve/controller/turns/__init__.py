"""Whose turn it is: both roles at once on different gangs, or all gangs in both roles in turn."""
