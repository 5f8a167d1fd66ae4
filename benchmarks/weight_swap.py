"""Measure what a new version of the weights costs trainer and engine, beside a copy of the same tensors.

python benchmarks/weight_swap.py [--shape NAME …] [--dtype bfloat16] [--rounds N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, ModelShape, model_folder

from rlserve.engine import Engine, EngineConfig
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.weights.config import ObjectStoreConfig, SharedFolderConfig
from rlserve.weights.offer import Offer
from rlserve.weights.receiver import Receiver
from rlserve.weights.sender import Sender
from rlserve.weights.transports.factory import create_receiving_end, create_sending_end

KV_CACHE_BYTES = 2**26
MAX_MODEL_LEN = 256


@dataclass(frozen=True, kw_only=True)
class TransportResult:
    """Medians over the rounds, with both ends in this process: what Ray itself costs is not in it."""

    transport: str
    send_s: float
    """Checksum, fingerprint and the sending end, beside the next step."""
    receive_s: float
    """The receiving end and the check of the checksum, beside the running model."""


@dataclass(frozen=True, kw_only=True)
class SwapResult:
    """Medians over the rounds."""

    shape: str
    dtype: str
    num_bytes: int
    copy_s: float
    """``copy_`` of every tensor into another that is there."""
    swap_s: float
    """``load_weights`` of the same tensors, until the next step can be computed with them."""
    fingerprint_s: float
    """Reading back what is loaded, and adding it up."""
    snapshot_s: float
    """The copy from float32 to the engine's type that a trainer's step waits for."""
    transports: tuple[TransportResult, ...]

    @property
    def num_copies(self) -> float:
        """What a swap costs."""
        return self.swap_s / self.copy_s


def measure(shape: ModelShape, dtype: str, *, num_rounds: int, cache: Path) -> SwapResult:
    """Copy, swap and read back in turn."""
    config = EngineConfig(dtype=dtype, kv_cache_bytes=KV_CACHE_BYTES, max_model_len=MAX_MODEL_LEN)
    engine = Engine(model_folder(shape, cache), config)
    weights = {name: tensor.clone() for name, tensor in engine.named_weights()}
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    copy_s, swap_s, fingerprint_s = [], [], []
    for version in range(1, num_rounds + 1):
        start = time.perf_counter()
        for name, tensor in weights.items():
            copies[name].copy_(tensor)
        copied = time.perf_counter()
        engine.load_weights(version, weights)
        swapped = time.perf_counter()
        found = fingerprint(engine.named_weights())
        copy_s.append(copied - start)
        swap_s.append(swapped - copied)
        fingerprint_s.append(time.perf_counter() - swapped)
        assert found == fingerprint(weights.items())
    with TemporaryDirectory() as folder:
        snapshot_s, transports = measure_transports(
            weights, getattr(torch, dtype), num_rounds=num_rounds, folder=Path(folder) / "weights"
        )
    return SwapResult(
        shape=shape.name,
        dtype=dtype,
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        copy_s=median(copy_s),
        swap_s=median(swap_s),
        fingerprint_s=median(fingerprint_s),
        snapshot_s=snapshot_s,
        transports=transports,
    )


def measure_transports(
    weights: Mapping[str, torch.Tensor], dtype: torch.dtype, *, num_rounds: int, folder: Path
) -> tuple[float, tuple[TransportResult, ...]]:
    """Seconds of a snapshot, and each transport's times."""
    masters = {name: tensor.float() for name, tensor in weights.items()}
    results, snapshot_s = [], []
    for config in (ObjectStoreConfig(), SharedFolderConfig(folder=str(folder))):
        sender = Sender("trainer", create_sending_end(config), dtype)
        receiver = Receiver(create_receiving_end(config))
        send_s, receive_s = [], []
        for version in range(num_rounds):
            start = time.perf_counter()
            sender.take_snapshot(version, masters)
            copied = time.perf_counter()
            cargo, part = sender.send(version, ())
            sent = time.perf_counter()
            receiver.receive(Offer(version=version, parts=(part,)), [cargo])
            receive_s.append(time.perf_counter() - sent)
            send_s.append(sent - copied)
            snapshot_s.append(copied - start)
        sender.discard_all()
        result = TransportResult(transport=config.transport, send_s=median(send_s), receive_s=median(receive_s))
        results.append(result)
    return median(snapshot_s), tuple(results)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each shape, and write the JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks/weight_swap.py", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["6m", "75m", "596m"], metavar="NAME")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = []
    for name in options.shape:
        result = measure(SHAPES[name], options.dtype, num_rounds=options.rounds, cache=options.model_cache)
        results.append(result)
        sys.stdout.write(
            f"{name} {result.dtype}, {result.num_bytes / 1e6:,.0f} MB: copy {1e3 * result.copy_s:.1f} ms, swap "
            f"{1e3 * result.swap_s:.1f} ms ({result.num_copies:.2f} copies), fingerprint "
            f"{1e3 * result.fingerprint_s:.1f} ms, snapshot {1e3 * result.snapshot_s:.1f} ms\n"
        )
        for found in result.transports:
            sys.stdout.write(
                f"  {found.transport}: send {1e3 * found.send_s:.1f} ms, receive {1e3 * found.receive_s:.1f} ms\n"
            )
    if options.json:
        content = {**circumstances(), "num_threads": options.threads, "torch": torch.__version__}
        content["results"] = [asdict(result) | {"num_copies": result.num_copies} for result in results]
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
