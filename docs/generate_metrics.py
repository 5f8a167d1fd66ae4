"""Write ``metrics.md`` from ``rlserve.tracking.names``.

python docs/generate_metrics.py
"""

from __future__ import annotations

from pathlib import Path

from rlserve.tracking.names import METRICS

TARGET = Path(__file__).with_name("metrics.md")
HEADER = """\
# Metrics

Every metric of a run: one line a step in `metrics.jsonl`, and the same names in wandb and TensorBoard. Written by
`docs/generate_metrics.py` from `rlserve/tracking/names.py`: change them there. Braces list alternatives:
`critic/score/{mean,max,min}` are three metrics. Training has verl's names and the engine vLLM's; TRL's name for the
same quantity follows in brackets. The rest is named by rlserve.

| metric | meaning |
|---|---|
"""


def render() -> str:
    """The whole page."""
    return HEADER + "".join(f"| `{name}` | {meaning} |\n" for name, meaning in METRICS.items())


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
