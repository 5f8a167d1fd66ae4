"""Weights from process to process on one GPU: by CUDA IPC, and by NCCL, which takes each process for a machine."""

from __future__ import annotations

import gc
import hashlib
import os
from functools import partial

import pytest
import torch
from weight_receivers import ReceiverProcess, receiver_processes
from weight_senders import sender_process, snapshot_of

from rlserve.distributed.addresses import LOOPBACK
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import ArgumentLostError, WorkerFailedError
from rlserve.weights.config import CudaIpcConfig, NcclConfig, WeightsConfig
from rlserve.weights.ipc.cuda import CudaIpcMemory
from rlserve.weights.packing import PackedWeights, take_snapshot, tensors_in
from rlserve.weights.reused_memory import ReusedMemory
from rlserve.weights.transports.base import ReceivingEnd
from rlserve.weights.transports.cuda_ipc import CudaIpcReceivingEnd, CudaIpcSendingEnd
from rlserve.weights.transports.factory import create_receiving_end, create_sending_end

pytestmark = pytest.mark.gpu

IPC = CudaIpcConfig()
BY_NCCL = NcclConfig(host=LOOPBACK, gather_s=0.5, peer_timeout_s=20.0)
NCCL_OVER_SOCKETS = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}


def end_of_another_machine(config: WeightsConfig) -> ReceivingEnd:
    """NCCL refuses two ranks on one GPU of one machine."""
    os.environ.update(NCCL_OVER_SOCKETS, NCCL_HOSTID=f"process-{os.getpid()}")
    return create_receiving_end(config)


def digest_of(packed: PackedWeights) -> str:
    return hashlib.sha256(packed.payload.cpu().numpy()).hexdigest()


def receive_all(receivers: list[ReceiverProcess], cargo: object) -> list[str]:
    for receiver in receivers:
        receiver.send(cargo)
    return [receiver.result() for receiver in receivers]


# -- CUDA IPC ------------------------------------------------------------------------------------------------


def test_processes_get_every_bit_by_cuda_ipc() -> None:
    end = create_sending_end(IPC)
    with receiver_processes(2, partial(create_receiving_end, IPC)) as receivers:
        for version in (1, 2, 3):
            packed = snapshot_of(version, end, "cuda").pack()
            cargo = end.send(packed)
            end.discard((version,))
            assert receive_all(receivers, cargo) == [digest_of(packed)] * 2
            assert digest_of(packed) == digest_of(snapshot_of(version, create_sending_end(BY_NCCL), "cpu").pack())
    end.discard(())


def test_what_arrives_is_on_the_gpu_with_the_fingerprint_that_a_cpu_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "large": torch.randn(3000, 1100, generator=generator),
        "odd": torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-45, 3.3895314e38]),
        "none": torch.zeros(0, 4),
    }
    end, memory = CudaIpcSendingEnd(IPC), CudaIpcMemory()
    on_gpu = {name: tensor.cuda() for name, tensor in weights.items()}
    snapshot = take_snapshot(1, on_gpu, torch.bfloat16, ReusedMemory(end.new_block))
    assert snapshot.payload.device.type == "cuda"
    assert snapshot.fingerprint == take_snapshot(1, weights, torch.bfloat16).fingerprint
    found = CudaIpcReceivingEnd(IPC, memory).receive(end.send(snapshot.pack()))
    assert found.payload.device.type == "cuda"
    assert found.payload.data_ptr() != snapshot.payload.data_ptr(), "a worker may take what it sent itself"
    assert fingerprint(tensors_in(found.payload, found.manifest.entries)) == snapshot.fingerprint
    end.discard(())


def test_what_is_discarded_is_gone_and_its_memory_is_the_gpus_again() -> None:
    end, num_bytes = CudaIpcSendingEnd(IPC), 2**28
    memory = ReusedMemory(end.new_block)
    weights = {"w": torch.zeros(num_bytes // 4, device="cuda")}
    cargo = end.send(take_snapshot(1, weights, torch.float32, memory).pack())
    before_bytes, _ = torch.cuda.mem_get_info()
    end.discard(())
    gc.collect()
    memory.free()
    assert torch.cuda.mem_get_info()[0] >= before_bytes + num_bytes
    with pytest.raises(ArgumentLostError, match="version 1 of the weights is gone with its sender"):
        CudaIpcReceivingEnd(IPC).receive(cargo)


def test_a_sender_that_is_lost_is_no_fault_of_the_receivers() -> None:
    with sender_process(partial(create_sending_end, IPC), "cuda") as sender:
        found = CudaIpcReceivingEnd(IPC).receive(sender.cargo)
        sender.kill()
        assert fingerprint(tensors_in(found.payload, found.manifest.entries)) == sender.fingerprint
        with pytest.raises(ArgumentLostError, match="version 1 of the weights is gone with its sender"):
            CudaIpcReceivingEnd(IPC).receive(sender.cargo)
    assert torch.ones(3, device="cuda").sum().item() == 3, "CUDA goes on"


def test_memory_that_there_is_not_is_named_and_cuda_goes_on() -> None:
    with pytest.raises(WorkerFailedError, match=r"the GPU has no [\d,]+ MiB for a copy of the weights"):
        CudaIpcMemory().new_block(2**44)
    assert torch.ones(3, device="cuda").sum().item() == 3


# -- NCCL ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.distributed.is_nccl_available(), reason="this PyTorch has no NCCL")
def test_nccl_serves_by_one_group_and_forms_it_anew_without_one_that_is_lost_and_with_one_that_joins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**NCCL_OVER_SOCKETS, "NCCL_HOSTID": f"process-{os.getpid()}"}.items():
        monkeypatch.setenv(name, value)
    end = create_sending_end(BY_NCCL)
    make_end = partial(end_of_another_machine, BY_NCCL)
    with receiver_processes(2, make_end) as (first, second), receiver_processes(1, make_end) as (third,):
        for version in (1, 2, 3):
            packed = snapshot_of(version, end, "cpu").pack()
            cargo = end.send(packed)
            assert receive_all([first, second], cargo) == [digest_of(packed)] * 2
        second.kill()
        assert receive_all([first], cargo) == [digest_of(packed)]
        assert receive_all([first, third], cargo) == [digest_of(packed)] * 2
    end.discard(())
