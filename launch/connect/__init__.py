"""Connecting a run to Ray: one that this process starts on this machine, or a running cluster."""
