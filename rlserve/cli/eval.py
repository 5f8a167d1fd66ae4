"""``rlserve eval``: scores a checkpoint on held-out data, without a run and without Ray."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlserve.cli.checkpoints import CONFIG_FILE, Checkpoint, add_checkpoint_argument, find_checkpoint, whole_model
from rlserve.cli.places import DEFAULT_OUTPUT_DIR
from rlserve.errors import UserError
from rlserve.tracking.run_folder import write_atomically
from rlserve.tracking.summary import format_score

if TYPE_CHECKING:
    from rlserve.config.tree import RunConfig
    from rlserve.controller.checkpoint_evaluation import CheckpointScore

DEFAULT_CONFIG = "conf/rlhf.yaml"
_NOT_OF_THE_MODEL = ("pool=two", "pool.num_initial_rollout=null", "manager=static", "launch=local")
"""A run's slots need not be on this machine: they are not what computes here."""
_DATA_KEY, _HELD_OUT_KEY, _NUMBER_KEY = "data.path", "data.held_out_path", "rollout.samples_per_prompt"
_EXAMPLES = """\
examples:
  rlserve eval latest                                 the newest checkpoint of the newest run
  rlserve eval latest --best                          the one with the best held-out score
  rlserve eval runs/my-run/checkpoints/step_000040
  rlserve eval latest data.path=other.jsonl data.num_held_out=1000
  rlserve eval latest evaluation.temperature=1 rollout.samples_per_prompt=8
  rlserve eval /my/model --config runs/my-run         a Hugging Face folder, as that run would score it
  rlserve eval /my/model data.path=/my/data.jsonl reward.function=my_reward.py:score
"""


def run(arguments: Sequence[str]) -> int:
    """Score a checkpoint and write down its answers."""
    parsed = _parser().parse_intermixed_args(arguments)
    checkpoint = find_checkpoint(parsed.checkpoint, parsed.output_dir, best=parsed.best)
    with whole_model(checkpoint) as model_path:
        return _score(checkpoint, model_path, parsed)


def _score(checkpoint: Checkpoint, model_path: Path, parsed: argparse.Namespace) -> int:
    """Score the model of the checkpoint, which lies whole in ``model_path``."""
    config = load_config(replace(checkpoint, model_path=model_path), parsed.config, parsed.overrides)
    num_answers = config.rollout.samples_per_prompt if _sets(parsed.overrides, _NUMBER_KEY) else 1
    if num_answers > 1 and config.evaluation.temperature == 0:
        raise UserError(
            f"{_NUMBER_KEY}={num_answers} greedy answers would all be alike: set evaluation.temperature=1 besides"
        )
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("rlserve").setLevel(logging.INFO)
    # Imported where used: torch takes seconds, and what is wrong with the arguments is told before.
    from rlserve.controller.checkpoint_evaluation import evaluate_checkpoint

    score, answers = evaluate_checkpoint(config, model_path, num_answers=num_answers, on_progress=_show_progress)
    about: dict[str, Any] = {
        "checkpoint": str(checkpoint.model_path),
        "data": config.data.held_out_path or config.data.path,
        "temperature": config.evaluation.temperature,
        **asdict(score),
    }
    path = _result_path(checkpoint, parsed.output)
    content = {**about, "answers": [asdict(answer) for answer in answers]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another --output") from error
    if parsed.json:
        sys.stdout.write(json.dumps({**about, "result": str(path)}, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join([*describe(score), str(path)]) + "\n")
    return 0


def load_config(checkpoint: Checkpoint, named: str | None, overrides: Sequence[str]) -> RunConfig:
    """What to score on and how: as the run did, or the configuration named by the user, with his overrides.

    Data that he names are scored on as a whole: there is nothing to train on here.

    Raises:
        ConfigurationError: something is wrong with it.
        UserError: it is of a run that has no reward.
    """
    from rlserve.config import load

    source = named or (str(checkpoint.run / CONFIG_FILE) if checkpoint.run is not None else DEFAULT_CONFIG)
    if (Path(source) / CONFIG_FILE).is_file():
        source = str(Path(source) / CONFIG_FILE)
    config = load(source, [f"model.path={checkpoint.model_path}", *_NOT_OF_THE_MODEL, *overrides], discovered={}).config
    if not config.algorithm.needs.rollouts:
        raise UserError(
            f"{source} learns from a data set (algorithm.name={config.algorithm.name}), and has no reward to score "
            f"answers by: name a configuration that has, with --config (its held-out loss is in metrics.jsonl)"
        )
    if _sets(overrides, _DATA_KEY) and not _sets(overrides, _HELD_OUT_KEY):
        data = replace(config.data, held_out_path=config.data.path, held_out_split=config.data.split)
        config = replace(config, data=data)
    return config


def describe(score: CheckpointScore) -> Iterator[str]:
    """The score in words."""
    if score.share_right is None:
        yield f"none of {score.num_answers:,} answers could be scored"
    else:
        num_right = round(score.share_right * score.num_scored)
        yield (
            f"held-out score {format_score(score.share_right, num_digits=3)}: {num_right:,} of {score.num_scored:,} "
            f"answers to {score.num_prompts:,} prompts are right"
        )
        if score.num_answers > score.num_prompts and score.share_of_prompts_right is not None:
            yield f"prompts with a right answer {format_score(score.share_of_prompts_right, num_digits=3)}"
        yield f"mean reward {score.mean_reward:.4g}"
    if score.share_cut:
        yield f"cut by rollout.max_tokens: {format_score(score.share_cut, num_digits=3)} of the answers"
    if score.num_failed:
        yield f"{score.num_failed:,} answers could not be scored and are left out: see their error in the file"
    if score.num_left_out:
        yield f"{score.num_left_out:,} answers were left out by the reward, which returned None"


def _result_path(checkpoint: Checkpoint, output: str | None) -> Path:
    return Path(f"eval-{checkpoint.label}.json" if output is None else output).expanduser().absolute()


def _sets(overrides: Sequence[str], key: str) -> bool:
    return any(override.startswith(f"{key}=") for override in overrides)


def _show_progress(num_done: int, num_all: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{num_done:,} of {num_all:,} prompts answered" + ("\n" if num_done == num_all else ""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve eval",
        usage="rlserve eval CHECKPOINT [key=value ...] [--config CONFIG] [--output FILE] [--json]",
        description="Score a checkpoint on held-out data with the run's own reward, in this process. Prints the share "
        "of right answers and writes every answer to a JSON file.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint_argument(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="as for launch: data.path is scored on as a whole, rollout.samples_per_prompt is 1 unless given",
    )
    parser.add_argument(
        "--config", metavar="CONFIG", help=f"a run or a YAML file to score by; else the run's own, or {DEFAULT_CONFIG}"
    )
    parser.add_argument("--output", metavar="FILE", help="where the answers go (eval-NAME.json)")
    parser.add_argument(
        "--output-dir", default=DEFAULT_OUTPUT_DIR, metavar="DIR", help=f"where runs lie ({DEFAULT_OUTPUT_DIR})"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser
