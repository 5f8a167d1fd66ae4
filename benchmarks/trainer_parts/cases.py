"""The cases, and what each of them must reach."""

from __future__ import annotations

from dataclasses import replace

from trainer_parts.base import Case

TIMES_TRL = 3.0
TIMES_PLAIN = 1.2
OF_DEEPSPEED = 1.1
SHORT, LONG = (3, 5), (50, 250)
"""Tokens of an answer."""

_STEPS = tuple(
    Case(
        name=f"{algorithm}-{name}",
        kind="step",
        algorithm=algorithm,
        peer=f"trl-{algorithm}",
        bar=TIMES_TRL,
        answer_tokens=tokens,
        steps_per_turn=num_steps,
    )
    for algorithm in ("grpo", "ppo")
    for name, tokens, num_steps in (("short", SHORT, 20), ("long", LONG, 1))
)
_SCORE = Case(  # batch, lengths and learning rate of conf/rlhf.yaml
    name="score",
    kind="score",
    peer="trl-score",
    bar=TIMES_TRL,
    task="addition",
    num_prompts=16,
    learning_rate=2e-4,
    default_rounds=3,
)
_UPDATES = tuple(
    Case(
        name=f"update-{short}",
        kind="update",
        peer="plain",
        bar=TIMES_PLAIN,
        dtype=dtype,
        num_prompts=6,
        answer_tokens=(16, 128),
        default_rounds=3,
    )
    for short, dtype in (("f32", "float32"), ("bf16", "bfloat16"))
)
_MEMORY = tuple(
    Case(
        name=f"memory-{num_ranks}-rank{'s' * (num_ranks > 1)}",
        kind="memory",
        peer="deepspeed",
        bar=OF_DEEPSPEED,
        num_prompts=1,
        num_samples=12,
        answer_tokens=(16, 16),
        prompt_tokens=1,
        steps_per_turn=2,
        num_ranks=num_ranks,
        default_rounds=2,
    )
    for num_ranks in (1, 4)
)
CASES = {case.name: case for case in (*_STEPS, _SCORE, *_UPDATES, *_MEMORY)}

SMOKE_NAME = "smoke"
SMOKE = (
    *(
        replace(case, name=f"{SMOKE_NAME}-{case.algorithm}", num_prompts=2, num_samples=4, answer_tokens=(2, 6))
        for case in (CASES["grpo-short"], CASES["ppo-short"])
    ),
    replace(CASES["score"], name=f"{SMOKE_NAME}-score", num_prompts=2, num_held_out=8, target_score=0.0),
    replace(CASES["update-bf16"], name=f"{SMOKE_NAME}-update", shape="tiny", num_prompts=1),
    replace(CASES["memory-1-rank"], name=f"{SMOKE_NAME}-memory", shape="tiny", num_ranks=2),
)
SMOKE = tuple(replace(case, bar=None, steps_per_turn=min(case.steps_per_turn, 2), default_rounds=1) for case in SMOKE)
"""Every peer once, in seconds; measures nothing."""


def chosen(names: list[str]) -> list[Case]:
    """The cases of these names; ``smoke`` stands for all whose names begin so."""
    named = CASES | {case.name: case for case in SMOKE}
    return [case for name in names for case in (SMOKE if name == SMOKE_NAME else (named[name],))]
