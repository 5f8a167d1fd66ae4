"""The same again: answers of an engine and a step of a trainer, bit by bit."""

from __future__ import annotations

import torch
from gpu_engine import workload

from gpu_parts.base import Place, Report
from gpu_parts.models import answers, folder_of, make_batch, make_engine, serve
from rlserve.trainers import PPOConfig, TorchTrainerConfig, Trainer, create_trainer


def measure_determinism(place: Place, report: Report) -> None:
    """Answers and weights of two runs; and whether the bits of an answer depend on the rest of the batch."""
    # On a CPU the engine can promise its bits; on a GPU it promises nothing across batches, so that is a figure.
    engine = make_engine(place, "6m", deterministic=not place.on_gpu)
    requests = workload(64, 8, 64, 4000) if place.on_gpu else workload(4, 2, 6, 100)
    first, again = (answers(serve(engine, requests)) for _ in range(2))
    report.holds(
        "engine: the same requests give the same tokens and log-probabilities again, bit by bit", first == again
    )
    alone = answers(serve(engine, requests[: len(requests) // 2]))
    num_equal = sum(first[request_id] == answer for request_id, answer in alone.items())
    report.figure("engine: share of answers whose bits do not depend on the rest of the batch", num_equal / len(alone))
    engine.close()
    report.holds("trainer: a step from the same state gives the same bits again", _same_steps(place))


def _same_steps(place: Place) -> bool:
    first, again = (_weights_after_a_step(place) for _ in range(2))
    return all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def _weights_after_a_step(place: Place) -> dict[str, torch.Tensor]:
    trainer: Trainer = create_trainer(
        TorchTrainerConfig(num_logical_shards=2),
        PPOConfig(),
        model_path=folder_of(place, "6m"),
        seed=0,
        device=place.device,
    )
    trainer.step(make_batch(num_samples=16, prompt_length=4, response_length=8, vocab_size=128, seed=0))
    weights = {name: tensor.to("cpu", copy=True) for name, tensor in trainer.weights().items()}
    trainer.leave()
    return weights
