"""Replicas: one engine a process, what is said to it and by it, how it stands, and who gets which request."""
