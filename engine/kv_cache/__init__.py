"""Ownership of KV blocks: who holds which, which are free, and which hold a known prefix."""
