"""Whether a model can be split over ranks. Imports no torch, so that ``--dry-run`` stays quick."""

from __future__ import annotations

from rlserve.engine.models.base import ModelSpec
from rlserve.errors import UserError


def check_divides(spec: ModelSpec, num_ranks: int) -> None:
    """Check that a model can be split.

    Raises:
        UserError: a size does not divide by the number of ranks.
    """
    sizes = {"attention heads": spec.num_heads, "tokens in the vocabulary": spec.vocab_size}
    if spec.experts is None or len(spec.experts.layers) < spec.num_layers:
        sizes["columns in the MLP"] = spec.intermediate_size
    if spec.experts is not None:
        sizes["columns in an expert"] = spec.experts.intermediate_size
    problems = [f"{size} {what}" for what, size in sizes.items() if size % num_ranks]
    if spec.num_kv_heads % num_ranks and num_ranks % spec.num_kv_heads:
        problems.append(f"{spec.num_kv_heads} key-value heads (nor the other way round)")
    if problems:
        raise UserError(
            f"tensor_parallel_size={num_ranks}: the model has {', '.join(problems)}, which does not divide by "
            f"{num_ranks}; choose another tensor_parallel_size"
        )
