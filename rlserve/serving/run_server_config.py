"""Configuration of the server in front of a run's own replicas. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlserve.errors import check_fields
from rlserve.serving.answers.config import AnswersConfig
from rlserve.serving.config import (
    AccessConfig,
    AccountingConfig,
    AdminConfig,
    AuditConfig,
    DegradationConfig,
    LimitsConfig,
    TracingConfig,
)
from rlserve.serving.content.config import ContentConfig


@dataclass(frozen=True, kw_only=True)
class RunServerConfig:
    """OpenAI's API in front of the replicas that roll out for training."""

    enabled: bool = False
    """Serve clients while the run goes on. Needs ``rlserve[serve]``."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own need keys, or ``access.insecure``."""
    port: int = 0
    """0 takes a free one, so that runs never collide; the log, ``rlserve status`` and ``server.json`` in the run's
    folder have the address."""
    name: str | None = None
    """What clients write as ``model``; None takes ``model.path`` as it is given."""
    chat_template: str | None = None
    """File with a Jinja template for conversations; None takes the tokenizer's own."""
    max_share: float = 0.25
    """Share of the samples that a replica holds (``rollout.engine.max_num_sequences``) which may be clients', one at
    least. Up to it they go before all others; beyond it they wait."""
    wait_timeout_s: float = 60.0
    """Longest that a client's request makes no progress, as while all slots train; 503 with ``Retry-After`` then."""
    drain_timeout_s: float = 30.0
    """Most time that the end of the run waits for answers under way."""
    access: AccessConfig = field(default_factory=AccessConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    accounting: AccountingConfig = field(default_factory=AccountingConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    content: ContentConfig = field(default_factory=ContentConfig)
    answers: AnswersConfig = field(default_factory=AnswersConfig)

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "port": 0 <= self.port < 2**16 or "must be from 0 to 65535",
                "max_share": 0 < self.max_share < 1 or "must be above 0 and below 1",
                "wait_timeout_s": self.wait_timeout_s > 0 or "must be above 0",
                "drain_timeout_s": self.drain_timeout_s >= 0 or "must be at least 0",
            },
        )

    def num_places(self, capacity: int) -> int:
        """Samples of clients that a replica which holds ``capacity`` in all may hold."""
        return max(1, int(capacity * self.max_share))
