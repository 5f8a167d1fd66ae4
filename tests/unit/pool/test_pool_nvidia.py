"""GPUs as CUDA numbers them and as Ray names them, asked of a driver that is a script."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

from rlserve.config import load
from rlserve.errors import PoolError
from rlserve.pool import nvidia
from rlserve.pool.discovery import discover_machine
from rlserve.pool.nvidia import has_slices, type_of, visible_gpus
from rlserve.roofline.accelerators import GPU_TYPES

PRODUCTS = {
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA GB200": "GB200",
    "NVIDIA B200": "B200",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100 80GB PCIe": "A100",
    "Tesla T4": "T4",
    "NVIDIA T400 4GB": "T400",
    "NVIDIA L4": "L4",
    "NVIDIA L40": "L40",
    "NVIDIA L40S": "L40S",
    "NVIDIA A10G": "A10G",
    "Tesla V100-SXM2-16GB": "V100",
    "NVIDIA GeForce RTX 4090": "GeForce-RTX-4090",
    "NVIDIA RTX A6000": "RTX-A6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
    "Quadro RTX 8000": "RTX-8000",
    "NVIDIA TITAN V": "TITAN-V",
}
QUERY = "\n".join(f"NVIDIA H100 80GB HBM3, GPU-{number}{number}, Disabled" for number in range(8))
MIXED = """\
NVIDIA A100-SXM4-80GB, GPU-aa, Enabled
NVIDIA A100-SXM4-80GB, GPU-bb, Disabled
NVIDIA A100-SXM4-80GB, GPU-cc, Enabled
"""
LISTED = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aa)
  MIG 3g.40gb     Device  0: (UUID: MIG-11)
  MIG 1g.10gb     Device  1: (UUID: MIG-22)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bb)
GPU 2: NVIDIA A100-SXM4-80GB (UUID: GPU-cc)
"""


class FakeDriver:
    """An ``nvidia-smi`` that comes first on the PATH."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "nvidia-smi"
        self.calls = folder / "calls"

    def answers(self, query: str, listed: str = "", *, exit_code: int = 0) -> None:
        self.runs(f"case $1 in -L) echo {shlex.quote(listed)};; *) echo {shlex.quote(query)};; esac; exit {exit_code}")

    def runs(self, script: str) -> None:
        self._file.write_text(f"#!/bin/sh\necho asked >> {self.calls}\n{script}\n")
        self._file.chmod(0o755)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return FakeDriver(tmp_path)


@pytest.mark.parametrize(("product", "expected"), PRODUCTS.items())
def test_products_have_the_names_that_ray_gives_to_nodes(product: str, expected: str) -> None:
    assert type_of(product) == expected
    assert NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(product) == expected


def test_the_small_a100_is_told_from_the_large_one() -> None:
    assert type_of("NVIDIA A100-SXM4-40GB") == type_of("NVIDIA A100-PCIE-40GB") == "A100-40G"
    assert GPU_TYPES["A100-40G"].memory_bandwidth_gb_s < GPU_TYPES["A100"].memory_bandwidth_gb_s


@pytest.mark.parametrize(
    ("visible", "number"),
    [
        (None, 8),
        ("0,1", 2),
        (" 3 ", 1),
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("0,-1,2", 1),
        ("GPU-11,GPU-7", 2),
    ],
)
def test_the_devices_that_cuda_will_see_are_counted(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, visible: str | None, number: int
) -> None:
    driver.answers(QUERY)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert discover_machine() == ({"H100": number} if number else {})


@pytest.mark.parametrize("visible", ["8", "0,GPU-9", "GPU-", "0,x"])
def test_a_device_that_is_not_there_is_named(driver: FakeDriver, visible: str) -> None:
    driver.answers(QUERY)
    with pytest.raises(PoolError, match=f"CUDA_VISIBLE_DEVICES={visible} names {visible.split(',')[-1]}, but there is"):
        visible_gpus({"CUDA_VISIBLE_DEVICES": visible})


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["A100-MIG-3g.40gb", "A100-MIG-1g.10gb", "A100"]),
        ("MIG-22,MIG-11", ["A100-MIG-1g.10gb", "A100-MIG-3g.40gb"]),
        ("0,1", ["A100-MIG-3g.40gb", "A100"]),
        ("GPU-bb", ["A100"]),
    ],
)
def test_slices_are_devices_of_their_own(driver: FakeDriver, visible: str | None, expected: list[str]) -> None:
    driver.answers(MIXED, LISTED)
    gpus = visible_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.type for gpu in gpus] == expected
    assert has_slices(gpus) == any("MIG" in name for name in expected)


def test_a_gpu_in_slices_mode_without_slices_cannot_be_asked_for(driver: FakeDriver) -> None:
    driver.answers(MIXED, LISTED)
    with pytest.raises(PoolError, match="names 2, but there is"):
        visible_gpus({"CUDA_VISIBLE_DEVICES": "2"})


def test_a_broken_driver_is_an_error_with_a_remedy(driver: FakeDriver) -> None:
    driver.answers("Failed to initialize NVML: Driver/library version mismatch", exit_code=18)
    with pytest.raises(PoolError, match=r"exit code 18 \(Failed .* version mismatch\).*CUDA_VISIBLE_DEVICES"):
        discover_machine()


def test_a_driver_that_hangs_is_an_error_with_a_remedy(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_TIMEOUT_S", 0.05)
    driver.runs("exec sleep 100")
    with pytest.raises(PoolError, match=r"did not answer within 0.05 s; mend the driver"):
        discover_machine()


def test_a_driver_without_devices_leaves_the_cpu(driver: FakeDriver) -> None:
    driver.answers("No devices were found", exit_code=6)
    assert discover_machine() == {}


def test_a_broken_driver_is_nothing_to_cpu_slots(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of CPU slots, a cluster, and no visible device: the driver is not even asked."""
    driver.answers("broken", exit_code=1)
    assert load("conf/rlhf.yaml", ["pool=two"]).discovered == {}
    assert load("conf/rlhf.yaml", ["pool=auto", "launch=cluster"]).discovered == {}
    with pytest.raises(PoolError, match=re.escape("nvidia-smi failed with exit code 1 (broken)")):
        load("conf/rlhf.yaml", ["pool=auto"])
    asked = driver.calls.read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert load("conf/rlhf.yaml", ["pool=auto"]).discovered == {}
    assert driver.calls.read_text() == asked == "asked\n"
