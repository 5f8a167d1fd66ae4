"""The weights of one model: fused for speed inside, Hugging Face names outside.

Queries, keys and values share one matrix, so do gate and up. Each Hugging Face name stands for some rows of a fused
tensor, so an update is one copy into place and needs no second set of weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

import torch

from rlserve.engine.decoder.layer_parameters import expert_stacks, new_layer
from rlserve.engine.decoder.named_weight import NamedWeight, PanelWeight, PlainWeight, put_weights
from rlserve.engine.decoder.staging import StagedWeights, stage_in_panels, stage_in_rows
from rlserve.engine.models.checkpoint import Checkpoint
from rlserve.engine.models.shard import Shard
from rlserve.engine.weights.check import check_tensors, find_problem, find_type_problem
from rlserve.engine.weights.fingerprint import fingerprint, tensor_fingerprint
from rlserve.errors import ModelError, WeightsRefusedError
from rlserve.native.huge_pages import advise_huge_pages
from rlserve.native.panels import empty_panels

HEAD_NAME = "lm_head.weight"
EMBEDDING_NAME = "model.embed_tokens.weight"
_DIFFERS = f"{HEAD_NAME} differs from {EMBEDDING_NAME}, but the model ties the two"


WeightChanges = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Hugging Face name -> (indices into the flattened weight, whole numbers; their new values), both [changed]."""


class Parameters:
    """Owner of all weight tensors. Empty (uninitialised) until loaded.

    What comes in is whole weights; of each, only this rank's part is kept.

    Args:
        in_panels: keep matrices as the CPU's own products read them, and nowhere else.
    """

    def __init__(self, shard: Shard, dtype: torch.dtype, device: torch.device, *, in_panels: bool) -> None:
        spec = shard.own
        self._shard = shard
        self._ties_head = spec.tied_embeddings
        self._dtype = dtype
        self._device = device
        self._in_panels = in_panels
        self._fused: list[torch.Tensor] = []
        self._panels: tuple[torch.Tensor, ...] = ()
        """Those of them that are in panels."""
        self._spare: tuple[torch.Tensor, ...] | None = None
        """What was computed with before the last exchange."""
        self._weights: dict[str, NamedWeight] = {}
        self._staged: dict[str, torch.Tensor] = {}
        """This rank's parts of weights that are to be swapped in."""
        self._staged_tie: dict[str, int] = {}
        """Fingerprints of embedding and head, where they are tied: the head is compared and not kept."""
        self._undo: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        """Flat tensor, places and values of before, of the changes that can be taken back."""
        self._stacks = expert_stacks(shard.whole)
        self.embedding = self._new([EMBEDDING_NAME], [spec.vocab_size], spec.hidden_size)
        self.layers = [new_layer(spec, index, self._new) for index in range(spec.num_layers)]
        self.final_norm = self._new(["model.norm.weight"], [spec.hidden_size])
        self.head = (
            self.embedding if spec.tied_embeddings else self._new([HEAD_NAME], [spec.vocab_size], spec.hidden_size)
        )

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight under its Hugging Face name, from what is really computed with: a view of it, or a copy where
        it lies in panels. A tied head is not listed: it is the embedding."""
        for name, weight in self._weights.items():
            yield name, weight.get()

    @property
    def staged(self) -> Mapping[str, torch.Tensor]:
        """What is staged, by name."""
        return self._staged

    def checked(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A whole new set of weights, by the names of :meth:`named`.

        Raises:
            WeightsRefusedError: names missing or unknown, shapes that do not fit, or what is no tensor of floating
                numbers.
        """
        check_tensors(tensors)
        tensors = self._by_part(tensors)
        problems = self._problems({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        if HEAD_NAME in tensors and self._ties_head and not problems:
            tied = {self._fingerprint_of(tensors[name]) for name in (HEAD_NAME, EMBEDDING_NAME)}
            problems += [_DIFFERS] if len(tied) > 1 else []
        if problems:
            raise WeightsRefusedError(_summary("weights refused", problems))
        return {name: tensors[name] for name in self._weights}

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy checked weights into place."""
        self._undo.clear()  # of changes that raised in the middle
        put_weights((self._weights[name], self._shard.cut(name, tensor)) for name, tensor in tensors.items())

    def stage_whole(self, tensors: Mapping[str, torch.Tensor]) -> StagedWeights:
        """Bring a whole new set of weights as far as it can be beside the one that is computed with. Any thread may
        call it, one at a time.

        Raises:
            WeightsRefusedError: as for :meth:`checked`.
        """
        checked = self.checked(tensors)
        if not self.exchangeable:
            return StagedWeights(fingerprint=fingerprint(tensors.items()), tensors=checked, beside=None)
        spare, self._spare = self._spare, None
        beside = spare or tuple(_empty_like(tensor) for tensor in self.exchangeable)
        weights = ((name, self._weights[name], tensor) for name, tensor in checked.items())
        return (stage_in_panels if self._in_panels else stage_in_rows)(weights, self.exchangeable, beside)

    @property
    def exchangeable(self) -> tuple[torch.Tensor, ...]:
        """What can be exchanged for other memory: nobody but its owner has views of it."""
        if self._in_panels:
            return self._panels
        is_alone = self._device.type == "cpu" and self._shard.num_ranks == 1
        return tuple(self._fused) if is_alone and not self._shard.own.experts else ()

    def exchange(self, beside: tuple[torch.Tensor, ...]) -> None:
        """Compute with what was staged from now on."""
        for mine, other in zip(self.exchangeable, beside, strict=True):
            mine.data, other.data = other.data, mine.data
        self._spare = beside

    def checked_bucket(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Some weights to be staged, by the names of :meth:`named`, and a tied head if it is among them.

        Raises:
            WeightsRefusedError: unknown names, shapes that do not fit, what is no tensor of floating numbers, or
                weights that are staged already.
        """
        check_tensors(tensors)
        tensors = self._by_part(tensors)
        problems = self._misfits({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        staged = self._staged.keys() | self._staged_tie.keys()
        problems += [f"{name} was sent already" for name in sorted(staged & tensors.keys())]
        if problems:
            raise WeightsRefusedError(_summary("weights refused", problems))
        return tensors

    def stage(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a copy of a checked weight, in the engine's type and on its device, for :meth:`swap_staged`."""
        if self._ties_head and name in (HEAD_NAME, EMBEDDING_NAME):
            self._staged_tie[name] = self._fingerprint_of(tensor)
        if name in self._weights:
            part = self._shard.cut(name, tensor.detach())
            self._staged[name] = part.to(
                device=self._device, dtype=self._dtype, copy=True, memory_format=torch.contiguous_format
            )

    def check_staged(self) -> None:
        """Check that a whole set of weights is staged.

        Raises:
            WeightsRefusedError: names are missing, or the tied head is another matrix than the embedding.
        """
        problems = [f"{name} is missing" for name in self._weights if name not in self._staged]
        if HEAD_NAME in self._staged_tie and len(set(self._staged_tie.values())) > 1:
            problems.append(_DIFFERS)
        if problems:
            raise WeightsRefusedError(_summary("weights refused", problems))

    def swap_staged(self) -> None:
        """Copy what is staged into place; it stays until :meth:`drop_staged`."""
        self._undo.clear()
        put_weights((self._weights[name], part) for name, part in self._staged.items())

    def drop_staged(self) -> None:
        """Forget what is staged."""
        self._staged.clear()
        self._staged_tie.clear()

    def check_changes(self, changes: WeightChanges) -> None:
        """Check that elements can be changed.

        Raises:
            WeightsRefusedError: a name is unknown, the indices and values fit neither it nor each other, or are no
                tensors of whole and of floating numbers.
        """
        problems = [problem for name, change in changes.items() if (problem := self._change_problem(name, change))]
        if problems:
            raise WeightsRefusedError(f"weights refused: {problems[0]}")

    def change(self, name: str, indices: torch.Tensor, values: torch.Tensor) -> None:
        """Write some elements of a weight, checked before; :meth:`take_back_changes` undoes it."""
        weight = self._weights[name]
        is_own, own_indices = self._shard.own_elements(name, weight.shape, indices.to(self._device, torch.int64))
        flat, places = weight.elements(own_indices)
        self._undo.append((flat, places, flat[places]))
        flat[places] = values.to(self._device, self._dtype)[is_own]

    def take_back_changes(self) -> None:
        """Write the elements of before again."""
        for flat, places, before in reversed(self._undo):
            flat[places] = before
        self._undo.clear()

    def keep_changes(self) -> None:
        """Forget the elements of before."""
        self._undo.clear()

    def load(self, checkpoint: Checkpoint) -> None:
        """Read the weights of a folder.

        Raises:
            ModelError: they do not fit the configuration.
        """
        shapes = checkpoint.shapes()
        parts = self._by_part({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        problems = self._problems({name: tuple(part.shape) for name, part in parts.items()})
        if problems:
            raise ModelError(_summary(f"{checkpoint.folder}: weights do not fit config.json", problems))
        brings_tied_head = self._ties_head and HEAD_NAME in shapes
        if brings_tied_head and not torch.equal(checkpoint.tensor(HEAD_NAME), checkpoint.tensor(EMBEDDING_NAME)):
            raise ModelError(
                f"{checkpoint.folder}: {HEAD_NAME} differs from {EMBEDDING_NAME}, but config.json ties the two: "
                "say tie_word_embeddings=false there"
            )
        for name, tensor in checkpoint.tensors():
            by_part = self._by_part({name: tensor})
            self.put({part: by_part[part] for part in by_part if part in self._weights})

    def release(self) -> None:
        """Free the memory; the tensors stay as empty shells that :meth:`restore` gives memory again."""
        self._spare = None
        for tensor in self._fused:
            tensor.untyped_storage().resize_(0)

    def restore(self) -> None:
        """Take the memory again, if it was released. Its content is undefined until the next update."""
        for tensor in self._fused:
            tensor.untyped_storage().resize_(tensor.numel() * tensor.element_size())
            if self._in_panels:
                advise_huge_pages(tensor)

    def _by_part(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The tensors under the names of a checkpoint: those that stack all experts are taken apart."""
        if self._stacks.keys().isdisjoint(tensors):
            return tensors
        parts: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            stack = self._stacks.get(name)
            fits = stack is not None and tuple(tensor.shape) == stack.shape
            parts |= stack.parts(tensor) if stack is not None and fits else {name: tensor}
        return parts

    def _problems(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        return [f"{name} is missing" for name in self._weights if name not in shapes] + self._misfits(shapes)

    def _misfits(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        ignored = {HEAD_NAME} if self._ties_head else set()
        problems = [f"{name} is unknown" for name in shapes if name not in self._weights and name not in ignored]
        problems += [
            f"{name} has shape {list(shapes[name])}, must be {list(whole)}"
            for name, weight in self._weights.items()
            if name in shapes and shapes[name] != (whole := self._shard.whole_shape(name, weight.shape))
        ]
        return problems

    def _fingerprint_of(self, tensor: torch.Tensor) -> int:
        """Of a weight as the engine would hold it."""
        return tensor_fingerprint(tensor.detach().to(self._dtype))

    def _change_problem(self, name: str, change: tuple[torch.Tensor, torch.Tensor]) -> str | None:
        """Why a change cannot be made, or None."""
        if name not in self._weights:
            return f"{name} is unknown"
        if not isinstance(change, tuple) or len(change) != 2:
            return f"{name} must have a pair of tensors, its indices and values"
        indices, values = change
        problem = find_problem(indices) or find_problem(values) or find_type_problem(values)
        if problem is not None:
            return f"{name} {problem}"
        if indices.dtype not in (torch.int64, torch.int32) or indices.dim() != 1 or indices.shape != values.shape:
            return f"{name} must have as many values as indices, whole numbers in one dimension"
        num_elements = torch.Size(self._shard.whole_shape(name, self._weights[name].shape)).numel()
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < num_elements:
            return f"{name} has {num_elements} elements, and the indices point past them"
        return None

    def _new(self, names: list[str], rows: list[int], *columns: int) -> torch.Tensor:
        """A tensor whose rows are the named parts, one below the other."""
        kind: type[PanelWeight | PlainWeight]
        if self._in_panels and columns:
            fused, kind = empty_panels(sum(rows), columns[0], self._dtype), PanelWeight
            self._panels = (*self._panels, fused)
        else:
            fused = torch.empty((sum(rows), *columns), dtype=self._dtype, device=self._device)
            kind = PlainWeight
        firsts = accumulate(rows, initial=0)
        parts = (kind(fused, first, torch.Size((size, *columns))) for first, size in zip(firsts, rows, strict=False))
        self._fused.append(fused)
        self._weights |= dict(zip(names, parts, strict=True))
        return fused


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    beside = torch.empty_like(tensor)
    advise_huge_pages(beside)
    return beside


def _summary(title: str, problems: list[str]) -> str:
    shown = "; ".join(problems[:5])
    return f"{title}: {shown}" + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
