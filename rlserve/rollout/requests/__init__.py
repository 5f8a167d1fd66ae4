"""Requests to the replicas: which kinds there are, and which replica answers which."""
