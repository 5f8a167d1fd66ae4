"""What is known about each type of accelerator: vendor data sheets, dense bf16, no sparsity.

The names are those that Ray gives to nodes (``accelerator_type:H100``).
"""

from __future__ import annotations

from dataclasses import dataclass
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


def _gpu(name: str, memory_bandwidth_gb_s: float, flops_tflops: float) -> SlotType:
    return SlotType(
        name=name,
        device="cuda",
        memory_bandwidth_gb_s=memory_bandwidth_gb_s,
        flops_tflops=flops_tflops,
    )


GPU_TYPES = {
    slot_type.name: slot_type
    for slot_type in (
        _gpu("GB300", 8000, 2500),
        _gpu("B300", 8000, 2250),
        _gpu("GB200", 8000, 2500),
        _gpu("B200", 8000, 2250),
        _gpu("GH200", 4000, 989),
        _gpu("H200", 4800, 989),
        _gpu("H100", 3350, 989),
        _gpu("H20", 4000, 148),
        _gpu("A100", 2039, 312),
        _gpu("A100-40G", 1555, 312),
        _gpu("RTX-PRO-6000", 1792, 503),
        _gpu("L40S", 864, 362),
        _gpu("L40", 864, 181),
        _gpu("A40", 696, 150),
        _gpu("RTX-A6000", 768, 155),
        _gpu("A30", 933, 165),
        _gpu("L4", 300, 121),
        _gpu("A10", 600, 125),
        _gpu("A10G", 600, 70),
        _gpu("GeForce-RTX-5090", 1792, 210),
        _gpu("GeForce-RTX-4090", 1008, 165),
        _gpu("GeForce-RTX-3090", 936, 71),
        _gpu("V100", 900, 125),
        _gpu("T4", 300, 65),
    )
}
_UNKNOWN_GPU = (500, 100)
_CPU_BANDWIDTH_GB_S = 20.0
_CPU_TFLOPS = 0.1


def is_cpu(type_name: str) -> bool:
    """Whether a slot of this type is a CPU process: its name begins with ``cpu``."""
    return type_name.lower().startswith("cpu")


def slot_type(name: str) -> SlotType:
    """The figures of a type; one that the catalogue does not know is taken for a modest GPU."""
    if is_cpu(name):
        return SlotType(
            name=name,
            device="cpu",
            memory_bandwidth_gb_s=_CPU_BANDWIDTH_GB_S,
            flops_tflops=_CPU_TFLOPS,
        )
    return GPU_TYPES.get(name) or _gpu(name, *_UNKNOWN_GPU)
