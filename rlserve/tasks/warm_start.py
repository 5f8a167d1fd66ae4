"""Make the model of a built-in task and teach it by supervised learning on the task's demonstrations.

Runs by itself, so that a driver without torch can start it: ``python -m rlserve.tasks.warm_start addition
--output DIR`` writes a Hugging Face folder. The result follows from the task and its recipe alone; on one machine,
with the same number of threads, bit for bit.

Legend: B demonstrations, S tokens of the longest one with its end-of-sequence token, V vocabulary.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from rlserve.processes import end_with_parent
from rlserve.tasks.base import Demonstration, Task, WarmStartRecipe
from rlserve.tasks.character_tokenizer import EOS, character_tokenizer
from rlserve.tasks.muon import Muon
from rlserve.tasks.registry import TASKS

logger = logging.getLogger(__name__)

IGNORED_LABEL = -100
"""Positions that ``cross_entropy`` leaves out: the prompt and the padding."""
MAX_NUM_THREADS = 4
"""More do not make such a small model faster."""
LOG_EVERY_STEPS = 50


def build_model(recipe: WarmStartRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights, float32, input and output embedding tied."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_position_embeddings,
        tie_word_embeddings=True,
        dtype="float32",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)


def make_batch(
    demonstrations: Sequence[Demonstration], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, S], padded on the right, and labels [B, S]: the same ids at the responses, elsewhere ignored."""
    prompts = tokenizer([demonstration.prompt for demonstration in demonstrations])["input_ids"]
    responses = tokenizer([demonstration.response + EOS for demonstration in demonstrations])["input_ids"]
    longest = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    token_ids = torch.full((len(demonstrations), longest), tokenizer.pad_token_id)
    labels = torch.full((len(demonstrations), longest), IGNORED_LABEL)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        token_ids[row, :end] = torch.tensor(prompt + response)
        labels[row, len(prompt) : end] = torch.tensor(response)
    return token_ids, labels


def learning_rate_factor(step: int, recipe: WarmStartRecipe) -> float:
    """Share of the peak learning rate at ``step`` (from 0): linear warm-up, constant, linear decay towards 0."""
    warmup = (step + 1) / recipe.num_warmup_steps
    decay = (recipe.num_steps - step) / (recipe.num_steps * recipe.decay_share)
    return min(1.0, warmup, decay)


def create_optimizers(model: Qwen3ForCausalLM, recipe: WarmStartRecipe) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the layers, AdamW for the rest: many fewer steps than AdamW alone needs here."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return (
        Muon(matrices, lr=recipe.matrix_learning_rate),
        torch.optim.AdamW(others, lr=recipe.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
) -> None:
    """Teach ``model`` in place, as the recipe of ``task`` says, on demonstrations that are all new."""
    recipe = task.recipe
    optimizers = create_optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))
        for optimizer in optimizers
    ]
    model.train()
    start = time.monotonic()
    easy, all_of_them = (task.demonstrations(seed=recipe.seed, easy=easy) for easy in (True, False))
    for step in range(recipe.num_steps):
        demonstrations = easy if step < recipe.num_steps * recipe.easy_share else all_of_them
        token_ids, labels = make_batch(list(islice(demonstrations, recipe.batch_size)), tokenizer)
        logits = model(input_ids=token_ids).logits  # [B, S, V]
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if (step + 1) % LOG_EVERY_STEPS == 0 or step + 1 == recipe.num_steps:
            elapsed_s = time.monotonic() - start
            logger.info("step %d/%d, loss %.3f, %.0f s", step + 1, recipe.num_steps, loss.item(), elapsed_s)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer's files into ``output``."""
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def warm_start(task: Task, output: Path) -> None:
    """Make, teach and save the model of ``task``. Leaves the caller's random state as it was."""
    tokenizer = character_tokenizer(task.alphabet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.recipe.seed)
        model = build_model(task.recipe, tokenizer)
    logger.info("warm start of %s: %d parameters", task.name, model.num_parameters())
    train(model, tokenizer, task)
    save(model, tokenizer, output)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: the task's name and the folder to write."""
    parser = argparse.ArgumentParser(prog="python -m rlserve.tasks.warm_start", description=warm_start.__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the model")
    parser.add_argument("--parent", type=int, help="process id of who started this, and with whom it ends")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        end_with_parent(options.parent)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bar()
    torch.set_num_threads(min(MAX_NUM_THREADS, len(os.sched_getaffinity(0))))
    warm_start(TASKS[options.task], options.output)


if __name__ == "__main__":
    main()
