"""The rollout role on a fake engine: weights with a receipt, whole answers, stop gives back the rest. What the loop
itself does is in ``test_engine_loop.py``."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from engine_fakes import FakeEngine, requests_of

from rlserve.engine.stats.metrics import vllm_metrics
from rlserve.errors import WorkerFailedError
from rlserve.pool.pacing.unpaced import Unpaced
from rlserve.pool.roles.rollout import RolloutRole
from rlserve.weights.config import ObjectStoreConfig
from rlserve.weights.contents.whole_model import WholeModel
from rlserve.weights.offer import Offer, SentPart
from rlserve.weights.packing import take_snapshot
from rlserve.weights.receiver import Receiver
from rlserve.weights.transports.factory import create_receiving_end, create_sending_end


def _offered(version: int) -> tuple[list[Offer], list[Any]]:
    snapshot = take_snapshot(version, {"weight": torch.full((4,), float(version))}, torch.float32)
    part = SentPart(sender="trainer", num_bytes=16, num_whole_bytes=16, fingerprint=snapshot.fingerprint)
    return [Offer(version=version, parts=(part,))], [create_sending_end(ObjectStoreConfig()).send(snapshot.pack())]


def _collect_all(role: RolloutRole) -> list[str]:
    """Poll until the role says that nothing more comes."""
    found: list[str] = []
    while True:
        collected = role.collect(5.0)
        found += [output.request_id for output in collected.outputs]
        if collected.closed:
            return found


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def role(engine: Any) -> RolloutRole:
    receiver = Receiver(create_receiving_end(ObjectStoreConfig()), keeps_last=True)
    return RolloutRole(engine, receiver, WholeModel(torch.float32), Unpaced(), "cpu")


def test_every_output_is_handed_out_exactly_once(role: RolloutRole) -> None:
    names = [f"request {number}" for number in range(200)]
    with ThreadPoolExecutor() as threads:
        collected = threads.submit(_collect_all, role)
        for start in range(0, 200, 7):
            role.submit(requests_of(*names[start : start + 7]))
        partials = [output.request_id for output in role.stop()]
        finished = collected.result(timeout=20)
    assert sorted(finished + partials) == sorted(names)


def test_weights_are_swapped_only_between_steps(engine: FakeEngine, role: RolloutRole) -> None:
    engine.gate.clear()
    role.submit(requests_of("a", "b"))
    assert engine.in_step.wait(5)
    with ThreadPoolExecutor() as threads:
        loading = threads.submit(role.take_weights, *_offered(1))
        engine.gate.set()
        receipt = loading.result(timeout=10)
    role.stop()
    assert receipt.version == 1
    assert receipt.fingerprint == _offered(1)[0][0].fingerprint
    place = engine.events.index("swap 1")
    before = engine.events[:place]
    assert before.count("step begins") == before.count("step ends")


def test_memory_is_freed_after_the_stop_and_nothing_runs_after_it(engine: FakeEngine, role: RolloutRole) -> None:
    role.submit(requests_of("a"))
    role.stop()
    assert not any(event.startswith("release") for event in engine.events), "first the requests move on"
    role.free()
    assert engine.events[-1] == "release, weights too: True"
    with pytest.raises(WorkerFailedError, match="is stopping"):
        role.take_weights(*_offered(1))
    with pytest.raises(WorkerFailedError, match="is stopping"):
        role.submit(requests_of("late"))
    assert "swap 1" not in engine.events
    _collect_all(role)
    assert role.collect(0.0).closed


def test_what_is_freed_is_measured(engine: FakeEngine, role: RolloutRole, monkeypatch: pytest.MonkeyPatch) -> None:
    # Straight from the kernel: what an allocator is given back it may keep.
    held = mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(bytes(2**26))
    monkeypatch.setattr(engine, "release_memory", lambda *, weights: held.close())
    role.stop()
    freed = role.free()
    assert freed.released_bytes == pytest.approx(2**26, rel=0.2)
    assert freed.after_bytes > 0


def test_a_poll_tells_the_numbers_of_the_engine_by_the_names_of_vllm(engine: FakeEngine, role: RolloutRole) -> None:
    collected = role.collect(0.0)
    assert (collected.outputs, collected.closed) == ((), False)
    assert collected.stats.engine_metrics == vllm_metrics(engine.stats())
    role.stop()
