"""Model families: what a Hugging Face folder says about a model, and the decoder that runs it.

Checking a folder needs no torch: the command line does it before any process starts.
"""

from rlserve.engine.models.factory import check_supported, read_model_spec

__all__ = ["check_supported", "read_model_spec"]
