"""Policies: which slots move, decided by pure functions. One file a policy."""
