"""Calls of tools: how models write them, read out of their answers, and forced by a grammar."""
