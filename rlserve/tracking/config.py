"""Configuration of tracking. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, with the names its users know."""

    enabled: bool = True
    """Whether to track with Weights & Biases."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto`` is online with a key and offline without. Whoever says not to upload (``WANDB_MODE``,
    ``WANDB_DISABLED``, ``wandb offline``) is obeyed, also against ``online``."""
    project: str | None = None
    """Project that the run appears in; None takes ``WANDB_PROJECT``, or that of wandb's settings, or ``rlserve``."""
    name: str | None = None
    """Name of the run there; None takes ``WANDB_NAME``, or else the name of the run's folder."""
    entity: str | None = None
    """User or team; None takes ``WANDB_ENTITY``, or else the account's default."""
    group: str | None = None
    """Group of runs that it belongs to; None takes ``WANDB_RUN_GROUP``."""
    tags: tuple[str, ...] = ()
    """Tags of the run; none takes ``WANDB_TAGS``."""
    samples_every_steps: int = 10
    """Steps between two tables of answers, the worst and the best of those that ``tracking.samples`` keeps; 0 logs
    none."""
    alerts: bool = True
    """Send an alert, which wandb passes on by mail or Slack, when a budget is passed and when the run fails."""

    def __post_init__(self) -> None:
        check_fields(self, {"samples_every_steps": self.samples_every_steps >= 0 or "must be at least 0"})


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides ``metrics.jsonl``, which is always written."""

    wandb: WandbConfig = WandbConfig()
    samples: int | float | Literal["all"] = 4
    """Prompt groups of each step, and held-out prompts of each evaluation, whose answers are kept in full in
    ``answers.jsonl``: a number of them, a share (0.25 is a quarter), or all; 0 keeps none. ``samples.jsonl`` has ids
    and rewards of all."""
    tensorboard: bool = True
    """Write event files into the run's folder."""
    prometheus_port: int | None = None
    """Port where Prometheus fetches metrics, those of each engine under vLLM's names; 0 takes a free one, which the log
    tells. None serves none."""
    prometheus_host: str = "127.0.0.1"
    """Address that this port is on; 0.0.0.0 lets other machines in, and asks nobody for a password. It is what a run in
    pods has, whose network policy lets Prometheus in alone."""
    report: bool = True
    """Make ``report.png`` and ``report.html`` when the run ends; ``rlserve report`` makes them at any time."""
    log_format: Literal["text", "json"] = "text"
    """Of ``rlserve.log`` and of the workers' logs. ``json``: one object a line, with ``role``, ``slot``, ``step`` and
    ``weight_version``, and with ``request_id`` and ``replica`` where it is about a client's request. What libraries
    print themselves is in files beside them then, ``.stderr``."""
    progress: Literal["auto", "live", "plain", "none"] = "auto"
    """``auto`` is a live display in a terminal and plain lines elsewhere."""

    def __post_init__(self) -> None:
        port = self.prometheus_port
        samples = self.samples
        check_fields(
            self,
            {
                "prometheus_port": port is None or 0 <= port < 2**16 or "must be from 0 to 65535",
                "samples": samples == "all"
                or (samples >= 0 and (isinstance(samples, int) or samples <= 1))
                or "must be a number of prompt groups, a share from 0.0 to 1.0, or all",
            },
        )
