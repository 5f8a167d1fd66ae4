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
    memory_gb: float


def _gpu(name: str, memory_gb: float, memory_bandwidth_gb_s: float, flops_tflops: float) -> SlotType:
    return SlotType(
        name=name,
        device="cuda",
        memory_gb=memory_gb,
        memory_bandwidth_gb_s=memory_bandwidth_gb_s,
        flops_tflops=flops_tflops,
    )


GPU_TYPES = {
    slot_type.name: slot_type
    for slot_type in (
        _gpu("GB300", 288, 8000, 2500),
        _gpu("B300", 288, 8000, 2250),
        _gpu("GB200", 186, 8000, 2500),
        _gpu("B200", 180, 8000, 2250),
        _gpu("GH200", 96, 4000, 989),
        _gpu("H200", 141, 4800, 989),
        _gpu("H100", 80, 3350, 989),
        _gpu("H20", 96, 4000, 148),
        _gpu("A100", 80, 2039, 312),
        _gpu("A100-40G", 40, 1555, 312),
        _gpu("RTX-PRO-6000", 96, 1792, 503),
        _gpu("L40S", 48, 864, 362),
        _gpu("L40", 48, 864, 181),
        _gpu("A40", 48, 696, 150),
        _gpu("RTX-A6000", 48, 768, 155),
        _gpu("A30", 24, 933, 165),
        _gpu("L4", 24, 300, 121),
        _gpu("A10", 24, 600, 125),
        _gpu("A10G", 24, 600, 70),
        _gpu("GeForce-RTX-5090", 32, 1792, 210),
        _gpu("GeForce-RTX-4090", 24, 1008, 165),
        _gpu("GeForce-RTX-3090", 24, 936, 71),
        _gpu("V100", 32, 900, 125),
        _gpu("T4", 16, 300, 65),
    )
}
_UNKNOWN_GPU = (16, 500, 100)
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
            memory_gb=0,
            memory_bandwidth_gb_s=_CPU_BANDWIDTH_GB_S,
            flops_tflops=_CPU_TFLOPS,
        )
    return GPU_TYPES.get(name) or _gpu(name, *_UNKNOWN_GPU)
