"""What is known about each type of accelerator: vendor data sheets, dense bf16, no sparsity.

The names are those that Ray gives to nodes (``accelerator_type:H100``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SlotType:
    """One kind of slot."""

    name: str
    device: Literal["cpu", "cuda"]
    memory_bandwidth_gb_s: float
    """Decoding is bound by this."""
    flops_tflops: float
    """Training is bound by this."""
    memory_gb: float
    """Weights, KV cache and the trainer's state are bound by this."""
    link_gb_s: float
    """To the other accelerators of a pool, in one direction: the network of the server that such a card usually comes
    in, as its share. Weights and the state of the trainers travel over it."""


def _gpu(
    name: str,
    memory_bandwidth_gb_s: float,
    flops_tflops: float,
    memory_gb: float,
    link_gb_s: float,
) -> SlotType:
    return SlotType(
        name=name,
        device="cuda",
        memory_bandwidth_gb_s=memory_bandwidth_gb_s,
        flops_tflops=flops_tflops,
        memory_gb=memory_gb,
        link_gb_s=link_gb_s,
    )


GPU_TYPES = {
    slot_type.name: slot_type
    for slot_type in (
        # Memory GB/s, TFLOP/s, memory GB, link GB/s (800, 400, 200 or 100 Gbit/s a card).
        _gpu("GB300", 8000, 2500, 288, 100),
        _gpu("B300", 8000, 2250, 288, 100),
        _gpu("GB200", 8000, 2500, 186, 50),
        _gpu("B200", 8000, 2250, 180, 50),
        _gpu("GH200", 4000, 989, 96, 50),
        _gpu("H200", 4800, 989, 141, 50),
        _gpu("H100", 3350, 989, 80, 50),
        _gpu("H20", 4000, 148, 96, 50),
        _gpu("A100", 2039, 312, 80, 25),
        _gpu("A100-40G", 1555, 312, 40, 25),
        _gpu("RTX-PRO-6000", 1792, 503, 96, 25),
        _gpu("L40S", 864, 362, 48, 25),
        _gpu("L40", 864, 181, 48, 25),
        _gpu("A40", 696, 150, 48, 12.5),
        _gpu("RTX-A6000", 768, 155, 48, 12.5),
        _gpu("A30", 933, 165, 24, 12.5),
        _gpu("L4", 300, 121, 24, 12.5),
        _gpu("A10", 600, 125, 24, 12.5),
        _gpu("A10G", 600, 70, 24, 12.5),
        _gpu("GeForce-RTX-5090", 1792, 210, 32, 12.5),
        _gpu("GeForce-RTX-4090", 1008, 165, 24, 12.5),
        _gpu("GeForce-RTX-3090", 936, 71, 24, 12.5),
        _gpu("V100", 900, 125, 32, 12.5),
        _gpu("T4", 300, 65, 16, 12.5),
    )
}
_UNKNOWN_GPU = (500, 100, 24, 12.5)


PACED_PREFIX = "paced-"
"""Of the name of a type that is a CPU process which takes as long as an accelerator would: ``paced-H100``."""


SPOT_SUFFIX = "-spot"
"""Of the name of a type whose machines can be taken away at any time, for a lower price: ``H100-spot``."""


def is_spot(type_name: str) -> bool:
    """Whether slots of this type are on spot machines."""
    return type_name.endswith(SPOT_SUFFIX)


def is_cpu(type_name: str) -> bool:
    """Whether a slot of this type is a CPU process: its name begins with ``cpu``, or it is paced."""
    return type_name.lower().startswith("cpu") or is_paced(type_name)


def is_paced(type_name: str) -> bool:
    """Whether a slot of this type is a CPU process that takes as long as an accelerator would."""
    return type_name.startswith(PACED_PREFIX)


def slot_type(name: str) -> SlotType:
    """The figures of a type; one that the catalogue does not know is taken for a modest GPU."""
    if is_spot(name):
        return replace(slot_type(name.removesuffix(SPOT_SUFFIX)), name=name)
    if is_paced(name):
        return replace(slot_type(name.removeprefix(PACED_PREFIX)), name=name, device="cpu")
    if is_cpu(name):
        return SlotType(
            name=name,
            device="cpu",
            memory_bandwidth_gb_s=20.0,
            flops_tflops=0.1,
            memory_gb=2.0,
            link_gb_s=5.0,
        )
    return GPU_TYPES.get(name) or _gpu(name, *_UNKNOWN_GPU)
