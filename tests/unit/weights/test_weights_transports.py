"""The contract of a transport, held by all of them, with a sender on one end and receivers on the other."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from host_ipc_memory import HostIpcMemory
from weights_fakes import StagedCopy

from rlserve.distributed.addresses import LOOPBACK
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import ArgumentLostError, WeightsRefusedError, WorkerFailedError
from rlserve.weights.config import (
    CudaIpcConfig,
    NcclConfig,
    ObjectStoreConfig,
    SharedFolderConfig,
    WeightsConfig,
    sends_deltas,
)
from rlserve.weights.contents.whole_model import WholeModel
from rlserve.weights.offer import Holding, Offer
from rlserve.weights.packing import take_snapshot
from rlserve.weights.receiver import Receiver
from rlserve.weights.sender import Sender
from rlserve.weights.transports.base import ReceivingEnd, SendingEnd
from rlserve.weights.transports.cuda_ipc import CudaIpcReceivingEnd, CudaIpcSendingEnd
from rlserve.weights.transports.factory import TRANSPORTS, create_receiving_end, create_sending_end

WEIGHTS = {"embed": torch.arange(12.0).reshape(4, 3), "norm": torch.tensor([1.5, -2.0]), "none": torch.zeros(0, 2)}


class Ends:
    """One sender and one receiver; what they hand each other goes through pickle, as it does between processes."""

    def __init__(self, config: WeightsConfig) -> None:
        self.sending, receiving = ends_of(config)
        keeps_last = sends_deltas(config)
        self.sender = Sender("cpu/0", self.sending, WholeModel(torch.float32), keeps_last=keeps_last)
        self.receiver = Receiver(receiving, keeps_last=keeps_last)

    def send(
        self, version: int, *, scale: float = 1.0, needed: tuple[int, ...] = (), base: Holding | None = None
    ) -> tuple[Offer, Any]:
        return self.send_these(version, {name: tensor * scale for name, tensor in WEIGHTS.items()}, needed, base)

    def send_these(
        self, version: int, weights: dict[str, torch.Tensor], needed: tuple[int, ...] = (), base: Holding | None = None
    ) -> tuple[Offer, Any]:
        self.sender.take_snapshot(version, weights)
        cargo, part = self.sender.send(version, base, needed)
        return Offer(version=version, parts=(part,), base=part.base), cargo

    def receive(self, *sent: tuple[Offer, Any]) -> dict[str, torch.Tensor]:
        sent = pickle.loads(pickle.dumps(sent))
        offers, cargo = [offer for offer, _ in sent], [cargo for _, cargo in sent]
        return self.receiver.receive(offers, cargo, StagedCopy).tensors


def ends_of(config: WeightsConfig) -> tuple[SendingEnd, ReceivingEnd]:
    """That of CUDA IPC on host memory."""
    if isinstance(config, CudaIpcConfig):
        return CudaIpcSendingEnd(config, memory := HostIpcMemory()), CudaIpcReceivingEnd(config, memory)
    return create_sending_end(config), create_receiving_end(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "run"


@pytest.fixture(params=list(TRANSPORTS))
def ends(request: pytest.FixtureRequest, folder: Path) -> Iterator[Ends]:
    made = Ends(config(request.param, folder))
    yield made
    made.sender.discard_all()


@pytest.fixture
def in_folder(folder: Path) -> Ends:
    return Ends(config("shared_folder", folder))


def config(transport: str, folder: Path) -> WeightsConfig:
    match transport:
        case "shared_folder":
            return SharedFolderConfig(folder=str(folder))
        case "nccl":
            return NcclConfig(backend="gloo", host=LOOPBACK, gather_s=0.0)
        case "cuda_ipc":
            return CudaIpcConfig()
    return ObjectStoreConfig()


def test_any_number_of_receivers_get_every_bit(ends: Ends) -> None:
    sent = ends.send(1)
    for _ in range(2):
        found = ends.receive(sent)
        assert list(found) == list(WEIGHTS)
        assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)
    assert sent[0].fingerprint == fingerprint(WEIGHTS.items())
    assert sent[0].num_bytes == 128 + 0


def test_a_version_that_is_needed_can_be_had_after_newer_ones(ends: Ends) -> None:
    sent = [ends.send(version, scale=float(version), needed=(1,)) for version in (1, 2, 3)]
    assert ends.receive(sent[0])["norm"][0] == 1.5
    assert ends.receive(sent[2])["norm"][0] == 4.5


def test_the_same_version_sent_again_by_another_is_the_same(ends: Ends) -> None:
    first, again = ends.send(1), ends.send(1)
    assert first[0].holding == again[0].holding
    for sent in (first, again):
        assert torch.equal(ends.receive(sent)["embed"], WEIGHTS["embed"])


@pytest.mark.parametrize("ends", [name for name in TRANSPORTS if name != "cuda_ipc"], indirect=True)
def test_what_changed_travels_as_the_whole_does(ends: Ends) -> None:
    weights = [{"w": torch.linspace(-1, 1, 4096)}]
    for _ in range(3):
        weights.append({"w": weights[-1]["w"].clone()})
        weights[-1]["w"][::100] += 1e-7
    sent = [ends.send_these(0, weights[0])]
    for version in (1, 2, 3):
        sent.append(ends.send_these(version, weights[version], (0, 1, 2), sent[-1][0].holding))
    assert [offer.base for offer, _ in sent] == [None, *(offer.holding for offer, _ in sent[:-1])]
    assert all(offer.num_bytes < offer.num_whole_bytes / 30 for offer, _ in sent[1:])
    assert torch.equal(ends.receive(sent[0])["w"], weights[0]["w"])
    assert torch.equal(ends.receive(sent[1])["w"], weights[1]["w"])
    assert torch.equal(ends.receive(sent[2], sent[3])["w"], weights[3]["w"]), "two links in one call"
    assert torch.equal(ends.receive(*sent)["w"], weights[3]["w"]), "as a newcomer"


def test_another_version_than_offered_is_refused(ends: Ends) -> None:
    (_, cargo), (offer, _) = ends.send(1), ends.send(2, needed=(1,))
    with pytest.raises(WeightsRefusedError, match="cpu/0 sent version 1 of the weights, offered was 2"):
        ends.receive((offer, cargo))


def test_a_tensor_in_two_parts_is_refused(ends: Ends) -> None:
    offer, cargo = ends.send(1)
    twice = Offer(version=1, parts=(*offer.parts, replace(offer.parts[0], sender="cpu/1")))
    with pytest.raises(WeightsRefusedError, match="has embed in two parts"):
        ends.receiver.receive([twice], [cargo, cargo], StagedCopy)


def test_a_snapshot_is_sent_once_and_may_be_dropped(ends: Ends) -> None:
    ends.send(1)
    ends.sender.take_snapshot(2, WEIGHTS)
    ends.sender.drop_snapshot(2)
    for version in (1, 2):
        with pytest.raises(WorkerFailedError, match=f"cpu/0 has no snapshot of version {version}"):
            ends.sender.send(version, None, ())


def test_a_folder_keeps_what_is_needed_and_the_newest_and_is_gone_in_the_end(in_folder: Ends, folder: Path) -> None:
    def versions() -> list[int]:
        return sorted(int(path.name.partition("-")[0]) for path in folder.iterdir())

    in_folder.send(1)
    in_folder.send(2, needed=(1,))
    assert versions() == [1, 2]
    in_folder.send(3, needed=(1,))
    assert versions() == [1, 3]
    gone = in_folder.send(4, needed=(3,))
    assert versions() == [3, 4]
    in_folder.sender.discard_all()
    assert not folder.exists()
    with pytest.raises(ArgumentLostError, match="version 4 of the weights is gone from"):
        in_folder.receive(gone)


def test_a_file_newer_than_all_that_is_needed_may_be_under_way_and_stays(in_folder: Ends, folder: Path) -> None:
    in_folder.send(1)
    in_folder.send(2, needed=(1,))
    in_folder.sending.discard((1,))
    assert len(list(folder.iterdir())) == 2


def test_a_file_that_is_damaged_or_cut_off_is_refused(in_folder: Ends, folder: Path) -> None:
    sent = in_folder.send(1)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    path.write_bytes(b"\x01" + content[1:])
    with pytest.raises(WeightsRefusedError, match="arrived damaged: its fingerprint is"):
        in_folder.receive(sent)
    path.write_bytes(content[:-1])
    with pytest.raises(WeightsRefusedError, match=r"damaged: .*weights has 127 bytes, 128 were written"):
        in_folder.receive(sent)


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_writer_that_crashes_leaves_no_version_and_its_remains_go_later(
    in_folder: Ends, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Crash(BaseException):
        """The end of the process: nothing that comes after it in the writer happens."""

    def crash(*_: object) -> None:
        raise Crash

    in_folder.send(1)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if step == "fsync" else "pathlib.Path.rename", crash)
        with pytest.raises(Crash):
            in_folder.send(2)
    assert sorted(path.suffix for path in folder.iterdir()) == [".unfinished", ".weights"]
    sent = in_folder.send(3)
    assert [path.suffix for path in folder.iterdir()] == [".weights"]
    assert torch.equal(in_folder.receive(sent)["embed"], WEIGHTS["embed"])


def test_a_file_is_flushed_before_it_has_its_name(in_folder: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename = Path.rename
    monkeypatch.setattr("os.fsync", lambda descriptor: events.append("flush"))
    monkeypatch.setattr(Path, "rename", lambda old, new: events.append("rename") or rename(old, new))
    in_folder.send(1)
    assert events == ["flush", "rename", "flush"]


def test_a_folder_that_cannot_be_written_to_is_named_and_what_was_begun_is_removed(
    in_folder: Ends, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorkerFailedError, match=r"version 1 .* weights\.folder=.*/run: No space left on device"):
        in_folder.send(1)
    assert list(folder.iterdir()) == []


def test_other_files_in_the_folder_are_let_alone(in_folder: Ends, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "mine.weights").write_text("mine")
    in_folder.send(1)
    in_folder.sender.discard_all()
    assert sorted(path.name for path in folder.iterdir()) == ["mine.weights", "notes.txt"]


def test_what_lies_in_the_store_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Ends(ObjectStoreConfig()).send(1)[1].payload[0] = 1


def test_a_snapshot_of_the_engines_type_is_what_is_sent() -> None:
    snapshot = take_snapshot(1, {"w": torch.tensor([1.0])}, torch.bfloat16)
    assert snapshot.payload.nbytes == 64
    assert snapshot.entries[0].num_bytes == 2
