"""Rewards: what scores an answer."""
