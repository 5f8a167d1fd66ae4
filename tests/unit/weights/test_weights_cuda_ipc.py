"""Weights lent from process to process, on host memory: what holds whatever the memory is."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from host_ipc_memory import HostIpcMemory
from weight_receivers import receiver_processes
from weight_senders import sender_process, snapshot_of

from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import ArgumentLostError, WeightsRefusedError
from rlserve.weights.config import CudaIpcConfig
from rlserve.weights.ipc.base import UnreachableMemoryError
from rlserve.weights.ipc.lending import borrowed
from rlserve.weights.packing import PackedWeights, tensors_in
from rlserve.weights.transports.cuda_ipc import CudaIpcReceivingEnd, CudaIpcSendingEnd, LentWeights

CONFIG = CudaIpcConfig()


def sending_end() -> CudaIpcSendingEnd:
    return CudaIpcSendingEnd(CONFIG, HostIpcMemory())


def receiving_end() -> CudaIpcReceivingEnd:
    return CudaIpcReceivingEnd(CONFIG, HostIpcMemory())


def packed_by(end: CudaIpcSendingEnd, version: int = 1) -> PackedWeights:
    return snapshot_of(version, end, "cpu").pack()


def fingerprint_of(packed: PackedWeights) -> int:
    return fingerprint(tensors_in(packed.payload, packed.manifest.entries))


class UnreachableMemory(HostIpcMemory):
    """Of a GPU that is nobody's peer. ``before`` is called when it is tried."""

    def __init__(self) -> None:
        super().__init__()
        self.before = lambda: None

    def copy(self, handle: bytes, num_bytes: int) -> torch.Tensor:
        self.before()
        raise UnreachableMemoryError("CUDA says peer access is not supported (217)")


def test_processes_get_every_bit() -> None:
    end = sending_end()
    with receiver_processes(2, receiving_end) as receivers:
        for version in (1, 2):
            packed = packed_by(end, version)
            cargo = end.send(packed)
            end.discard((version,))
            for receiver in receivers:
                receiver.send(cargo)
            digest = hashlib.sha256(packed.payload.numpy()).hexdigest()
            assert [receiver.result() for receiver in receivers] == [digest] * 2
    end.discard(())


def test_what_is_received_is_the_receivers_own() -> None:
    end = sending_end()
    packed = packed_by(end)
    found = receiving_end().receive(end.send(packed))
    assert found.is_own
    assert found.payload.data_ptr() != packed.payload.data_ptr()
    found.payload.zero_()
    assert packed.payload.any()
    end.discard(())


def test_what_is_discarded_is_gone_and_what_is_needed_is_not() -> None:
    end, receiver = sending_end(), receiving_end()
    first, second = end.send(packed_by(end, 1)), end.send(packed_by(end, 2))
    end.discard((2,))
    with pytest.raises(ArgumentLostError, match="version 1 of the weights is not kept any more"):
        receiver.receive(first)
    assert receiver.receive(second).manifest.version == 2
    end.retire()
    with pytest.raises(ArgumentLostError, match="version 2 of the weights is gone with its sender"):
        receiver.receive(second)
    again = end.send(packed_by(end, 2))
    assert receiver.receive(again).manifest.version == 2, "after it has retired"
    end.discard(())


def test_memory_that_is_borrowed_is_kept_until_it_is_given_back() -> None:
    end, is_freed = sending_end(), threading.Event()
    packed = packed_by(end)
    weakref.finalize(packed, is_freed.set)
    cargo = end.send(packed)
    del packed
    with borrowed(cargo.address, cargo.parcel):
        end.discard(())
        assert not is_freed.is_set()
    assert is_freed.wait(60)


def test_a_sender_that_is_lost_is_no_fault_of_the_receivers() -> None:
    with sender_process(sending_end, "cpu") as sender:
        assert fingerprint_of(receiving_end().receive(sender.cargo)) == sender.fingerprint
        sender.kill()
        with pytest.raises(ArgumentLostError, match="version 1 of the weights is gone with its sender"):
            receiving_end().receive(sender.cargo)


def test_memory_that_cannot_be_reached_is_named_with_the_remedy() -> None:
    end = sending_end()
    cargo = replace(end.send(packed_by(end)), device="GPU-1234")
    message = r"lies on GPU-1234, which the host cannot reach: CUDA says peer .* \(217\); .* topo .* weights=nccl"
    with pytest.raises(WeightsRefusedError, match=message):
        CudaIpcReceivingEnd(CONFIG, UnreachableMemory()).receive(cargo)
    end.discard(())


def test_memory_that_is_gone_with_its_sender_is_not_taken_for_unreachable() -> None:
    memory = UnreachableMemory()
    with sender_process(sending_end, "cpu") as sender:
        memory.before = sender.kill
        with pytest.raises(ArgumentLostError, match="version 1 of the weights is gone with its sender"):
            CudaIpcReceivingEnd(CONFIG, memory).receive(sender.cargo)


def test_another_machine_is_named() -> None:
    end = sending_end()
    cargo = replace(end.send(packed_by(end)), machine="elsewhere")
    with pytest.raises(WeightsRefusedError, match=r"lies on elsewhere, and this is .*: .* take weights=nccl"):
        receiving_end().receive(cargo)
    end.discard(())


def test_a_sender_that_does_not_answer_is_waited_for_no_longer_than_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    end = sending_end()
    cargo = end.send(packed_by(end))
    monkeypatch.setattr("rlserve.weights.ipc.lending._ANSWER_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(address := f"\0rlserve-test-{os.getpid()}")
        silent.listen()
        with pytest.raises(ArgumentLostError, match=r"is lost: its sender has not answered for 0\.05 s"):
            receiving_end().receive(replace(cargo, address=address))
    end.discard(())


def test_other_users_are_lent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    end = sending_end()
    cargo: LentWeights = end.send(packed_by(end))
    monkeypatch.setattr("rlserve.weights.ipc.lending.os.geteuid", partial(int, -1))
    with pytest.raises(ArgumentLostError, match="version 1 of the weights is gone with its sender"):
        receiving_end().receive(cargo)
    end.discard(())
