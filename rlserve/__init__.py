"""Reinforcement learning of language models that shares one pool of GPUs between training and rollout."""

import time

__version__ = "0.1.0"
STARTED_S = time.monotonic()
"""When rlserve was first imported: in the command line, some hundredths of a second after its start."""
