"""Notices that slots are about to be taken away, and where they come from."""
