from __future__ import annotations

import re
import subprocess
import sys

from rlserve.tracking import names

CONSTANTS = {key: value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}


def spelled_out() -> set[str]:
    """Every name that the table documents, with its braces written out."""
    spelled: set[str] = set()
    for pattern in names.METRICS:
        head, alternatives, tail = re.fullmatch(r"([^{]*)(?:\{(.*)\})?(.*)", pattern).groups()  # type: ignore[union-attr]
        spelled.update(f"{head}{alternative}{tail}" for alternative in (alternatives or "").split(","))
    return spelled


def test_names_used_in_code_are_documented() -> None:
    assert len(CONSTANTS) >= 8
    assert set(CONSTANTS.values()) <= spelled_out()


def test_names_belong_to_a_family() -> None:
    families = {re.split(r"[/:]", name)[0] for name in spelled_out()}
    training = {"training", "actor", "critic", "response_length", "prompt_length", "timing_s", "perf", "val-core"}
    assert families == training | {"vllm", "rollout", "pool", "manager", "weights"}


def test_the_room_is_used_without_torch() -> None:
    modules = ("tracker", "wandb", "tensorboard", "summary", "progress", "logs", "report.png", "report.html")
    imports = "\n".join(f"import rlserve.tracking.{module}" for module in modules)
    check = "import sys; assert not {'torch', 'tensorflow', 'ray'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", f"{imports}\n{check}"], check=True, timeout=60)
