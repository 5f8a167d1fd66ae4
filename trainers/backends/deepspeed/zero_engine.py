"""One trained network in DeepSpeed, or those that share a trunk: gradient, optimizer, and what this rank has of the
state.

What DeepSpeed does not tell otherwise is read from its optimizers:

=====  =====================================  =======================================
stage  float32 parameters of this rank        cut as
=====  =====================================  =======================================
0      the parameters                         not at all
1, 2   ``single_partition_of_fp32_groups``    ``partition_of_rank`` of ``bit16_groups``
3      ``fp32_partitioned_groups_flat``       ``shards_of_rank`` of ``fp16_groups``
=====  =====================================  =======================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlserve.trainers.backends.base import POLICY
from rlserve.trainers.backends.config import DeepSpeedTrainerConfig
from rlserve.trainers.backends.deepspeed.held_state import FIRST, PARAMETERS, SECOND, Pieces
from rlserve.trainers.backends.deepspeed.importing import import_deepspeed
from rlserve.trainers.backends.deepspeed.layout import Place, Span, optimizer_groups, partition_of_rank, shards_of_rank
from rlserve.trainers.backends.deepspeed.networks import PolicyPass, move_buffers
from rlserve.trainers.backends.deepspeed.settings import deepspeed_settings
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.intervals import Interval

_MOMENTS = {FIRST: "exp_avg", SECOND: "exp_avg_sq"}
"""What torch's AdamW calls them."""


class ZeroEngine:
    """Of one rank; made, and called, by all ranks together."""

    def __init__(
        self,
        module: nn.Module,
        places: Mapping[nn.Parameter, Place],
        config: DeepSpeedTrainerConfig,
        group: Group,
        device: torch.device,
    ) -> None:
        """``module`` computes passes of networks with any content; ``places`` are of its trained parameters."""
        self._group = group
        self._stage = config.zero_stage
        self._places = dict(places)
        settings = deepspeed_settings(
            config,
            num_elements=sum(place.elements.num_elements for place in places.values()),
            pins_memory=device.type == "cuda",
        )
        if self._stage == 3:
            shard_module(module, settings, device)
        parameters = {place: parameter for parameter, place in self._places.items()}
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": [parameters[place] for place in group],
                    "weight_decay": config.weight_decay if group[0].is_decayed else 0.0,
                    "rate": group[0].rate,
                }
                for group in optimizer_groups(list(self._places.values()))
            ],
            lr=0.0,
            betas=(config.adam_beta1, config.adam_beta2),
            fused=True,
        )
        self._engine: Any = import_deepspeed(device.type).initialize(
            model=module, optimizer=self._adamw, config=settings, dist_init_required=False
        )[0]
        if isinstance(module, PolicyPass) and self._stage == 3:
            import_deepspeed(device.type).zero.register_external_parameter(module, module.head_weight)

    @property
    def module(self) -> Any:
        """Computes passes, without a gradient."""
        return self._engine.module

    def forward(self, *args: Any) -> Any:
        """A pass that is gone back through."""
        return self._engine(*args)

    def backward(self, loss: Tensor, *, completes: bool) -> None:
        """Add the gradient of a loss; the sum over all ranks is there once it ``completes`` the gradient."""
        self._engine.set_gradient_accumulation_boundary(completes)
        self._engine.backward(loss * self._group.num_ranks)  # of which DeepSpeed takes the mean

    def gradient_norm(self) -> float:
        """Of the gradient that is complete, over all ranks, before clipping; infinite where it is not finite."""
        zero = self._engine.optimizer
        if self._stage == 0:
            gradients = [parameter.grad for parameter in self._places if parameter.grad is not None]
            norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in gradients])))
            return norm if math.isfinite(norm) else math.inf
        found = zero._get_norm_groups() if self._stage == 3 else [zero.scaled_global_norm()]
        norms = [float(norm) for norm in found]
        if any(norm < 0 or not math.isfinite(norm) for norm in norms):  # below 0 is DeepSpeed's word for it
            return math.inf
        return math.hypot(*norms)

    def step(self, learning_rates: Mapping[str, float]) -> None:
        """Clip the gradient and apply it."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rates[group["rate"]]
        self._engine.step()

    def read(self) -> dict[str, Pieces]:
        """Copies, in host memory, of what this rank has; moments only once there was an update."""
        found: dict[str, list[tuple[Interval, Tensor]]] = {PARAMETERS: []}
        for owner, spans in self._vectors():
            state = self._adamw.state.get(owner, {})
            sources = {PARAMETERS: owner.data} | {
                vector: state[name] for vector, name in _MOMENTS.items() if name in state
            }
            for vector, source in sources.items():
                for span in spans:
                    piece = _of_span(source, span).detach().to("cpu", copy=True)
                    found.setdefault(vector, []).append((span.elements, piece))
        return {vector: Pieces(pieces) for vector, pieces in found.items()}

    @torch.no_grad()
    def write(self, vectors: Mapping[str, Pieces], num_updates: int) -> None:
        """Take over what this rank should have; the rest of the parameters follows from it, on all ranks together."""
        for owner, spans in self._vectors():
            for span in spans:
                _of_span(owner.data, span).copy_(vectors[PARAMETERS].read(span.elements))
            if num_updates:
                state = {name: torch.zeros_like(owner.data) for name in _MOMENTS.values()}
                for vector, name in _MOMENTS.items():
                    for span in spans:
                        _of_span(state[name], span).copy_(vectors[vector].read(span.elements))
                step = torch.tensor(float(num_updates), device=owner.device)
                self._adamw.state[owner] = {"step": step, **state}
        self._spread_parameters()

    def policy_parameters(self) -> dict[str, Tensor]:
        """The policy's trained parameters, by name, where every rank has all of them; views."""
        assert self._stage < 3, "under stage 3 no rank has a parameter whole"
        return {place.name: parameter.detach() for parameter, place in self._places.items() if place.network == POLICY}

    def parts(self) -> Pieces:
        """What this rank has of the trained parameters; views."""
        return Pieces(
            (span.elements, _of_span(owner.data, span).detach()) for owner, spans in self._vectors() for span in spans
        )

    def destroy(self) -> None:
        """Let go of what is in the memory of a device."""
        self._engine.destroy()
        self._adamw.state.clear()
        self._adamw.param_groups.clear()
        del self._engine

    def _vectors(self) -> Iterator[tuple[Any, list[Span]]]:
        """What AdamW updates here, each with the elements that it consists of."""
        zero, rank, num_ranks = self._engine.optimizer, self._group.rank, self._group.num_ranks
        if self._stage == 0:
            for parameter, place in self._places.items():
                yield parameter, [Span(elements=place.elements, offset=0)]
            return
        if self._stage == 3:
            owners, groups, cut = zero.fp32_partitioned_groups_flat, zero.fp16_groups, shards_of_rank
        else:
            owners, groups, cut = zero.single_partition_of_fp32_groups, zero.bit16_groups, partition_of_rank
        for owner, group in zip(owners, groups, strict=True):
            yield owner, cut([self._places[parameter] for parameter in group], rank, num_ranks)

    def _spread_parameters(self) -> None:
        zero = self._engine.optimizer
        if self._stage in (1, 2):
            zero.update_lp_params()
        elif self._stage == 3:
            lasting = zero.persistent_parameters  # small ones, which every rank has whole
            if lasting:
                lasting[0].partition(lasting)
            for index in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(index)
            if lasting:
                lasting[0].all_gather(lasting)


class FrozenEngine:
    """The reference under stage 3, cut up as what is trained is."""

    def __init__(
        self, module: PolicyPass, places: Mapping[str, Place], config: DeepSpeedTrainerConfig, device: torch.device
    ) -> None:
        """``module`` computes passes of a network with any content."""
        settings = deepspeed_settings(config, num_elements=1, pins_memory=device.type == "cuda")
        settings["zero_optimization"] = {
            **{key: value for key, value in settings["zero_optimization"].items() if key != "offload_optimizer"},
            "stage3_param_persistence_threshold": 0,
        }
        shard_module(module, settings, device)
        self._parameters = {places[name]: parameter for name, parameter in module.policy.named_parameters()}
        deepspeed = import_deepspeed(device.type)
        self._engine: Any = deepspeed.initialize(model=module, config=settings, dist_init_required=False)[0]
        deepspeed.zero.register_external_parameter(module, module.head_weight)

    @property
    def module(self) -> Any:
        """Computes passes."""
        return self._engine.module

    def read(self) -> Pieces:
        """Copies, in host memory, of what this rank has."""
        return Pieces(
            (elements, shard[: elements.num_elements].detach().to("cpu", copy=True))
            for elements, shard in self._shards()
        )

    @torch.no_grad()
    def write(self, pieces: Pieces) -> None:
        """Take over what this rank should have."""
        for elements, shard in self._shards():
            shard[: elements.num_elements].copy_(pieces.read(elements))

    def destroy(self) -> None:
        """Let go of what is in the memory of a device."""
        self._engine.destroy()
        del self._engine

    def _shards(self) -> Iterator[tuple[Interval, Tensor]]:
        from torch import distributed

        for place, parameter in self._parameters.items():
            for span in shards_of_rank([place], distributed.get_rank(), distributed.get_world_size()):
                yield span.elements, parameter.ds_tensor.data.view(-1)


def shard_module(module: nn.Module, settings: Mapping[str, Any], device: torch.device) -> None:
    """Cut the parameters up for stage 3, one after the other, so that a device never holds all of them."""
    import_deepspeed(device.type).zero.Init(module=module, config_dict_or_path=dict(settings), dtype=torch.float32)
    move_buffers(module, device)


def forget_earlier_modules() -> None:
    """Of stage 3. DeepSpeed numbers all parameters and modules that a process ever had, and compares the numbers of
    ranks, some of which may have had more; and it keeps the modules."""
    from deepspeed.runtime.zero import parameter_offload

    parameter_offload.Init.param_id = 0
    parameter_offload.FWD_MODULE_STACK.clear()
    (numbers,) = parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
    numbers[0] = 0


def _of_span(vector: Tensor, span: Span) -> Tensor:
    return vector.view(-1)[span.offset : span.offset + span.elements.num_elements]
