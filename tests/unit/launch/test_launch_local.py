"""What our own Ray is told about slots; and that one that does not come up is an error with a remedy."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import ray

from rlserve.errors import PoolError
from rlserve.launch.connect import local
from rlserve.launch.connect.local import LocalLauncher
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.nvidia import Gpu

WHOLE = Gpu(type="A100", uuid="GPU-1")
SLICE = Gpu(type="A100-MIG-3g.40gb", uuid="MIG-2")
CPU = PoolConfig(slots=(SlotGroupConfig(type="cpu-a", count=2),))


class FakeRay:
    """Stands in for ``ray.init``; records what it is given, and raises one error after the other."""

    def __init__(self, *errors: Exception) -> None:
        self.given: dict[str, Any] = {}
        self.num_calls = 0
        self._errors = iter(errors)

    def __call__(self, **given: Any) -> None:
        self.given = given
        self.num_calls += 1
        for error in self._errors:
            raise error


def started(monkeypatch: pytest.MonkeyPatch, groups: tuple[SlotGroupConfig, ...], gpus: tuple[Gpu, ...]) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(ray, "init", fake)
    monkeypatch.setattr(local, "visible_gpus", lambda: gpus)
    local._start_ray(Path("/tmp/folder"), groups)
    return fake


def test_cpu_slots_are_resources_and_no_gpu_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = tuple(
        SlotGroupConfig(type=name, count=count) for name, count in (("cpu-a", 2), ("cpu-b", 1), ("cpu-a", 1))
    )
    given = started(monkeypatch, groups, (WHOLE,)).given
    assert given["resources"] == {"cpu-a": 3.0, "cpu-b": 1.0}
    assert given["num_gpus"] == 0
    assert given["_temp_dir"] == "/tmp/folder"


def test_slices_are_shown_to_ray_one_by_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    groups = tuple(SlotGroupConfig(type=gpu.type, count=1) for gpu in (WHOLE, SLICE))
    with caplog.at_level(logging.WARNING):
        given = started(monkeypatch, groups, (WHOLE, SLICE)).given
    assert given["resources"] == {"accelerator_type:A100": 1.0, "accelerator_type:A100-MIG-3g.40gb": 1.0}
    assert given["num_gpus"] == 2
    assert os.environ.pop("CUDA_VISIBLE_DEVICES") == "GPU-1,MIG-2"
    assert "GPUs of several types in one machine" in caplog.text


@pytest.mark.parametrize("kind", [ValueError, Exception])
def test_a_ray_that_does_not_come_up_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    monkeypatch.setattr(ray, "init", FakeRay(kind("no room for the object store.\nand more")))
    launcher = LocalLauncher()
    with pytest.raises(PoolError, match=r"could not be started .*: no room for the object store; free memory"):
        launcher.connect(CPU)
    folder = launcher._folder
    assert folder is not None
    launcher.close()
    assert not folder.exists()


@pytest.mark.parametrize("num_times", [1, 2])
def test_a_ray_that_a_busy_machine_is_slow_to_start_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, num_times: int, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeRay(*[Exception("The current node timed out during startup. This could be.")] * num_times)
    monkeypatch.setattr(ray, "init", fake)
    launcher = LocalLauncher()
    try:
        if num_times == 1:
            launcher.connect(CPU)
        else:
            with pytest.raises(PoolError, match="timed out during startup"):
                launcher.connect(CPU)
    finally:
        launcher.close()
    assert fake.num_calls == 2
    assert "started once more" in caplog.text
