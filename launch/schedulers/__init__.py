"""Cluster schedulers: what a run becomes as a job of each, and how such a job is asked and ended."""
