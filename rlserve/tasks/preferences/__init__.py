"""Pairs of answers to the problems of a built-in task, of which one is preferred. Imports no torch."""
