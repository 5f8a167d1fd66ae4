"""What one rank writes of a checkpoint: its rows of everything, and its tensors of the policy; rank 0 also the counters
and the index."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rlserve.trainers.backends.fully_sharded.layout import Cut
from rlserve.trainers.backends.fully_sharded.state import ShardedState
from rlserve.trainers.backends.pytorch.state import MOMENTS
from rlserve.trainers.backends.pytorch.state_copy import PolicyCopy
from rlserve.trainers.backends.pytorch.state_files import Part, file_name, parts_of_rank_0, write_index
from rlserve.trainers.base import StateCopy


class RowsCopy(StateCopy):
    """Of one rank of a group; see ``StateCopy``."""

    def __init__(self, state: ShardedState, policy: PolicyCopy) -> None:
        """``policy`` is what this rank has of it."""
        held = state.shards_held()
        self._cut = held.shards.cut
        self._declared = state.saved_tensors()
        self._layout = state.layout
        self._tensors: dict[str, Tensor] = {}
        for moment, prefix in ((None, ""), *((moment, prefix) for prefix, moment in MOMENTS.items())):
            for tensor in state.layout.trained if moment else state.layout.tensors:
                rows = held.rows(tensor, moment)
                if rows.numel():
                    self._tensors[f"{prefix}{tensor.name}"] = rows.detach().to("cpu", copy=True)
        self._policy = policy
        self._progress = held.progress.saved().tensors()
        if self._cut.rank == 0:
            self._tensors |= self._progress

    def write(self, folder: Path, *, policy_folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors, folder / file_name(self._cut.rank, self._cut.num_ranks))
        if self._cut.rank == 0:
            write_index(folder, self._declared, self._parts())
        self._policy.write(policy_folder)

    def _parts(self) -> dict[str, list[Part]]:
        """Which elements of each saved tensor each rank writes."""
        num_ranks = self._cut.num_ranks
        parts = parts_of_rank_0(self._progress, num_ranks)
        for tensor in self._layout.tensors:
            of_ranks = [(rank, tensor.part(Cut(rank=rank, num_ranks=num_ranks))) for rank in range(num_ranks)]
            found = [
                Part(file=file_name(rank, num_ranks), elements=part) for rank, part in of_ranks if part.num_elements
            ]
            for prefix in ("", *MOMENTS):
                parts[f"{prefix}{tensor.name}"] = found
        return parts
