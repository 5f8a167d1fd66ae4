"""Slurm: one job, with a component for each type of slot."""
