"""What training by DeepSpeed ZeRO-1 adds to the memory of a rank: the same model and tokens, a policy gradient, AdamW
in float32, the optimizer's state cut into as many parts as there are ranks."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import deepspeed
import torch
from models import SHAPES, model_folder
from process_usage import held_bytes, peak_bytes
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from trainer_parts.base import Assignment, Case, Outcome, Turn, TurnByTurn, Turns
from trainer_parts.batches import make_batch
from trainer_parts.memory_ranks import Place, RankMemory, most_of_ranks, run_rank


class DeepSpeedMemory(TurnByTurn):
    """Bytes a parameter of the rank with most."""

    def do(self, turn: Turn, turns: Turns) -> Outcome:
        small_folder = model_folder(SHAPES["tiny"], Path(self.assignment.model_folder).parent)
        return most_of_ranks(__name__, self.assignment, str(small_folder))

    def versions(self) -> dict[str, str]:
        return {"deepspeed": deepspeed.__version__, "torch": torch.__version__}

    def settings(self) -> dict[str, str]:
        return {"stage": "1", "AdamW": "torch"}


def measure(assignment: Assignment, small_folder: str, place: Place) -> RankMemory:
    """As one rank, on its part of the batch."""
    case = assignment.case
    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.rank),
        "WORLD_SIZE": str(place.num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(place.port),
    }
    deepspeed.init_distributed(dist_backend="gloo")
    small = _engine(small_folder, case)
    _step(small, case, SHAPES["tiny"].vocab_size, 0, place)
    del small
    gc.collect()
    before = held_bytes()
    engine = _engine(assignment.model_folder, case)
    for step in range(case.steps_per_turn):
        _step(engine, case, SHAPES[case.shape].vocab_size, step, place)
    num_parameters = sum(parameter.numel() for parameter in engine.module.parameters())
    return RankMemory(added_bytes=peak_bytes() - before, num_parameters=num_parameters)


def _engine(folder: str, case: Case) -> Any:
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = {
        "train_micro_batch_size_per_gpu": case.num_answers // case.num_ranks,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.AdamW(policy.parameters(), lr=case.learning_rate, weight_decay=0.0)
    return deepspeed.initialize(model=policy, optimizer=optimizer, config=config)[0]


def _step(engine: Any, case: Case, vocab_size: int, step: int, place: Place) -> None:
    """The policy gradient of this rank's answers, which all have one length here."""
    batch = make_batch(case, vocab_size, step)
    token_ids = torch.from_numpy(batch.token_ids).long().view(batch.num_samples, -1)
    share = batch.num_samples // place.num_ranks
    own = slice(place.rank * share, (place.rank + 1) * share)
    tokens, rewards = token_ids[own], torch.from_numpy(batch.rewards)[own]
    logits = engine(tokens, use_cache=False).logits[:, case.prompt_tokens - 1 : -1]
    targets = tokens[:, case.prompt_tokens :]
    log_probs = -cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    engine.backward(-(log_probs * rewards[:, None]).mean())
    engine.step()


if __name__ == "__main__":
    run_rank(measure)
