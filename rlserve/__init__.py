"""Reinforcement learning of language models that shares one pool of GPUs between training and rollout."""

__version__ = "0.1.0"
