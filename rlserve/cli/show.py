"""``rlserve show``: what a run's policy was asked and what it answered."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rlserve.cli.numbers import at_least_one
from rlserve.cli.places import open_run
from rlserve.errors import UserError
from rlserve.tracking.answers import Answer, Kind, by_reward, read_answers

MAX_NUM_CHARACTERS = 1500
"""Of one text, unless all of it is asked for."""
_EXAMPLES = """\
examples:
  rlserve show                         answers of the newest step of the newest run
  rlserve show my-run --worst -n 3     the three with the lowest reward in its newest step
  rlserve show my-run --step 12 --best
  rlserve show my-run --held-out       answers to held-out prompts, of the newest evaluation
"""


def run(arguments: Sequence[str]) -> int:
    """Print some answers of a run."""
    parsed = _parser().parse_args(arguments)
    folder = open_run(parsed.run)
    kind: Kind = "held_out" if parsed.held_out else "training"
    kept = [answer for answer in read_answers(folder.answers_file) if answer.kind == kind]
    answers = of_step(kept, parsed.step, folder.name)
    if parsed.worst or parsed.best:
        answers = by_reward(answers, best_first=parsed.best)
    console = Console()
    for answer in answers[: parsed.number]:
        _print(console, answer, None if parsed.full else MAX_NUM_CHARACTERS)
    num_left = len(answers) - parsed.number
    if num_left > 0:
        console.print(Text(f"{num_left} more answers of step {answers[0].step} are kept: -n {len(answers)}", "dim"))
    return 0


def of_step(answers: Sequence[Answer], step: int | None, run_name: str) -> list[Answer]:
    """The answers of a step; None: of the newest.

    Raises:
        UserError: there are none.
    """
    steps = sorted({answer.step for answer in answers})
    if not steps:
        raise UserError(
            f"no such answers are kept of {run_name}: it has done no step yet, or ran with tracking.samples=0"
        )
    wanted = steps[-1] if step is None else step
    if wanted not in steps:
        raise UserError(f"no answers of step {wanted} are kept of {run_name}, only of {describe_steps(steps)}")
    return [answer for answer in answers if answer.step == wanted]


def describe_steps(steps: Sequence[int]) -> str:
    """``1 to 7, 9``."""
    spans: list[list[int]] = []
    for step in steps:
        if spans and step == spans[-1][1] + 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    return ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in spans)


def shorten(text: str, max_num_characters: int | None) -> str:
    """The beginning and the end of a text that is too long."""
    if max_num_characters is None or len(text) <= max_num_characters:
        return text
    half = max_num_characters // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} more characters (--full) …\n{text[-half:]}"


def facts(answer: Answer) -> str:
    """How an answer ended and what made it, in one line."""
    versions = sorted({version for version, _, _ in answer.weight_spans})
    ended = "ended by itself" if answer.finish_reason == "stop" else f"cut ({answer.finish_reason})"
    parts = [
        f"{ended} after {answer.num_response_tokens:,} tokens",
        f"prompt {answer.num_prompt_tokens:,} tokens",
        f"weights {describe_steps(versions)}" if versions else "",
        f"{answer.staleness} steps old" if answer.staleness else "",
        *(f"{name} {value:g}" for name, value in answer.reward_parts.items()),
    ]
    return " · ".join(filter(None, parts))


def _print(console: Console, answer: Answer, max_num_characters: int | None) -> None:
    what = "held-out prompt" if answer.kind == "held_out" else "group"
    reward = "-" if answer.reward is None else f"{answer.reward:g}"
    title = Text(f"step {answer.step} · {what} {answer.group_id} · answer {answer.index} · reward {reward}", "bold")
    console.print(Rule(title, align="left", style="dim"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("prompt", Text(shorten(answer.prompt, max_num_characters)))
    if answer.reference is not None:
        table.add_row("reference", Text(shorten(_as_text(answer.reference), max_num_characters)))
    table.add_row("answer", Text(shorten(answer.response, max_num_characters)))
    table.add_row("", Text(facts(answer), "dim"))
    console.print(table)


def _as_text(reference: object) -> str:
    return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve show",
        description="Print prompts and answers of a run, as far as tracking.samples kept them; all of them are in its "
        "answers.jsonl.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", default="latest", metavar="RUN", help="its folder, its name, or latest")
    parser.add_argument("--step", type=int, metavar="N", help="the training step; without it the newest that is kept")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--worst", action="store_true", help="the lowest reward first")
    order.add_argument("--best", action="store_true", help="the highest reward first")
    parser.add_argument("-n", dest="number", type=at_least_one, default=5, metavar="K", help="how many (5)")
    parser.add_argument("--held-out", action="store_true", help="answers to held-out prompts instead")
    parser.add_argument("--full", action="store_true", help="do not shorten long texts")
    return parser
