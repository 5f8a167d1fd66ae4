"""Configuration of a server. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rlserve.engine.config import EngineConfig
from rlserve.errors import check_fields
from rlserve.serving.answers.config import AnswersConfig
from rlserve.serving.content.config import ContentConfig
from rlserve.serving.scaling.config import ScalingConfig

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServedModelConfig:
    """The model, and what clients call it."""

    path: str
    """A Hugging Face folder or hub name, a run's checkpoint, or ``builtin:NAME`` for a small one that rlserve makes."""
    name: str | None = None
    """What clients write as ``model``; None takes ``path`` as it is given."""
    adapters: dict[str, str] = field(default_factory=dict)
    """LoRA adapters, by what clients write as ``model`` to have them: folders as peft writes them."""
    tokenizer_path: str | None = None
    """None takes the tokenizer beside the model."""
    chat_template: str | None = None
    """File with a Jinja template for conversations; None takes the tokenizer's own."""
    tool_parser: Literal["auto", "none", "hermes", "llama3_json"] = "auto"
    """How the model writes calls of tools. ``auto``: as its chat template shows. ``hermes``: JSON in ``<tool_call>``
    tags, as Qwen does too. ``llama3_json``: the answer is the JSON."""
    reasoning_parser: Literal["auto", "none", "think_tags"] = "auto"
    """How reasoning is told from the answer. ``auto``: by ``<think>`` tags if the chat template knows them."""


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may ask. Without keys the server listens on this machine alone."""

    keys_file: str | None = None
    """File with one key a line, or ``sha256:`` and the hash of one in hexadecimal digits, and after it what is said of
    it: ``name=ci roles=user+metrics priority=5 requests_per_minute=60 tokens_per_minute=20000``, each of which may be
    left out. Lines that begin with ``#`` are remarks."""
    keys_variable: str = "RLSERVE_API_KEYS"
    """Environment variable with keys, commas between them. Keys of both places count."""
    insecure: bool = False
    """Listen on other addresses without keys: for networks that nobody else reaches."""
    tls_certificate: str | None = None
    """File with the certificate chain, PEM."""
    tls_key: str | None = None
    """File with its private key, PEM."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "tls_key": (self.tls_key is None) == (self.tls_certificate is None)
                or "must be given together with tls_certificate",
            },
        )


@dataclass(frozen=True, kw_only=True)
class AdminConfig:
    """Who may run the server while it runs: pause, drain, new weights, moves. It has a listener of its own, off unless
    it has a port."""

    port: int | None = None
    """None has no such listener; 0 takes a free port."""
    host: str = "127.0.0.1"
    """Address that it listens on."""
    keys_file: str | None = None
    """File with its keys, as ``access.keys_file``. There must be one, here or in the environment."""
    keys_variable: str = "RLSERVE_ADMIN_KEYS"
    """Environment variable with its keys, commas between them."""
    profile_folder: str | None = None
    """Folder for traces of the engine's steps, which operators ask for, on the machine of the replica; None refuses
    them."""

    def __post_init__(self) -> None:
        check_fields(self, {"port": self.port is None or 0 <= self.port < 2**16 or "must be from 0 to 65535"})


@dataclass(frozen=True, kw_only=True)
class AccountingConfig:
    """What each key has had: requests and tokens, in ``/metrics`` by its name, and their price."""

    usage_file: str | None = None
    """JSON file that it is kept in over restarts, written every few seconds and at the end; None begins anew."""
    prompt_price: float = 0.0
    """Of a million tokens of prompts that were computed, in any currency."""
    cached_price: float = 0.0
    """Of a million that were found in the cache."""
    generated_price: float = 0.0
    """Of a million that were generated."""

    @property
    def has_prices(self) -> bool:
        """Whether there is a price at all."""
        return (self.prompt_price, self.cached_price, self.generated_price) != (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        prices = ("prompt_price", "cached_price", "generated_price")
        check_fields(self, {name: 0 <= getattr(self, name) < float("inf") or "must be at least 0" for name in prices})


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Who asked for what, and when: a JSON line for each request."""

    path: str | None = None
    """File of the lines; None writes none."""
    max_bytes: int = 100 * 2**20
    """Of the file. A full one is renamed (``.1``, ``.2`` …) and a new one begun."""
    num_kept: int = 10
    """Full files that are kept."""
    text: bool = False
    """Put the bodies of requests, and so prompts, into the lines."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "max_bytes": self.max_bytes >= 1024 or "must be at least 1024",
                "num_kept": self.num_kept >= 1 or "must be at least 1",
            },
        )


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a request may ask for. Checked before memory is taken for it."""

    max_body_bytes: int = 8 * 2**20
    """Of a request. A larger one is answered with 413."""
    max_header_bytes: int = 64 * 2**10
    """Of a request's first line and headers."""
    header_timeout_s: float = 20.0
    """Until the first line and the headers have arrived, from the connection or the request before on; the connection
    is closed then."""
    body_timeout_s: float = 30.0
    """Until a body has arrived; 408 afterwards."""
    max_n: int = 64
    """Answers to one prompt."""
    max_prompts: int = 1024
    """Prompts of one request."""
    max_stop: int = 16
    """Stop strings of a request."""
    max_stop_chars: int = 1024
    """Of one stop string."""
    max_logprobs: int = 20
    """Likeliest tokens that are told for each token."""
    max_live_samples: int = 4096
    """Answers that are generated or wait for it, of all clients. What comes beyond is answered with 503."""
    template_timeout_s: float = 5.0
    """Of rendering one conversation."""
    stalled_reader_s: float = 120.0
    """A client that takes nothing of its stream for so long is given up."""

    def __post_init__(self) -> None:
        check_fields(self, {name: value > 0 or "must be above 0" for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class RoutingConfig:
    """Which replica answers."""

    policy: Literal["least_load", "round_robin", "consistent_hash", "measured_speed"] = "least_load"
    """``least_load``: fewest answers under way. ``round_robin``: in turn. ``consistent_hash``: requests that begin
    alike, or are of one session, go to the same replica, where their prompt is cached, unless it has much more to do
    than others. ``measured_speed``: soonest done by the tokens a second that each replica was seen to make, for
    replicas that are unlike."""
    max_load_ratio: float = 1.5
    """Of ``consistent_hash``: a replica with more than so many times the mean number of answers, and eight at
    least, is passed over."""

    def __post_init__(self) -> None:
        check_fields(self, {"max_load_ratio": self.max_load_ratio >= 1 or "must be at least 1"})


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """When a replica is passed over, given up and started anew."""

    start_timeout_s: float = 600.0
    """Until a replica's engine is loaded."""
    beat_interval_s: float = 0.25
    """Between two signs of life of a replica."""
    suspect_after_s: float = 3.0
    """Without a sign of life: it gets no new requests until there is one again."""
    lost_after_s: float = 10.0
    """Without a sign of life: its process is killed, its answers go on elsewhere, and it is started anew."""
    stuck_after_s: float = 300.0
    """With work and without a step of its engine: likewise. The first step of some backends compiles."""
    max_failed_starts: int = 5
    """In a row; the replica is given up then, and the server ends when all are."""
    exact_failover: bool = True
    """On a CPU, with ``engine.tensor_parallel_size=1``: compute the same bits whatever else is in the batch, as with
    ``engine.deterministic=true``, so that an answer which goes on elsewhere is the one that it would have been."""
    max_failovers: int = 3
    """Replicas that may be lost under one request: it may be what they die of."""
    failover_timeout_s: float = 60.0
    """Most time that an answer waits for another replica when its own is lost."""

    def __post_init__(self) -> None:
        others = {name: value for name, value in vars(self).items() if name not in ("exact_failover", "max_failovers")}
        check_fields(
            self,
            {
                **{name: value > 0 or "must be above 0" for name, value in others.items()},
                "max_failovers": self.max_failovers >= 0 or "must be at least 0",
                "lost_after_s": self.lost_after_s > self.suspect_after_s > 0 or "must be above suspect_after_s",
            },
        )


@dataclass(frozen=True, kw_only=True)
class DrainConfig:
    """How the server ends on SIGTERM: first it is not ready any more, then it takes nothing new, then it exits."""

    notice_s: float = 0.0
    """Time for load balancers to see that it is not ready; requests are taken meanwhile."""
    timeout_s: float = 300.0
    """Most time for answers under way to end."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "notice_s": self.notice_s >= 0 or "must be at least 0",
                "timeout_s": self.timeout_s >= 0 or "must be at least 0",
            },
        )


@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """What gives way when replicas are short or there is too much to do. The load is the number of answers under way
    for each one that the replicas which are ready compute at once (``engine.max_num_sequences``)."""

    shorten_at: float = 4.0
    """Load from which answers are cut to ``shortened_max_tokens``."""
    shortened_max_tokens: int = 512
    """Most tokens of an answer then."""
    refuse_at: float = 8.0
    """Load from which requests are answered with 503 and ``Retry-After``."""
    retry_after_s: int = 5
    """What ``Retry-After`` says."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "shorten_at": self.shorten_at > 0 or "must be above 0",
                "shortened_max_tokens": self.shortened_max_tokens >= 1 or "must be at least 1",
                "refuse_at": self.refuse_at >= self.shorten_at or "must be at least shorten_at",
                "retry_after_s": self.retry_after_s >= 1 or "must be at least 1",
            },
        )


@dataclass(frozen=True, kw_only=True)
class TracingConfig:
    """OpenTelemetry traces: one span a request. Needs ``rlserve[tracing]``."""

    endpoint: str | None = None
    """Of a collector that takes OTLP over HTTP, as ``http://127.0.0.1:4318``; None traces nothing. Headers for it stand
    in ``OTEL_EXPORTER_OTLP_HEADERS``."""
    service_name: str = "rlserve"
    """``service.name`` of the spans."""
    sample_ratio: float = 1.0
    """Share of the requests that are traced. Where a client sends ``traceparent``, that says whether its own are."""

    def __post_init__(self) -> None:
        has_scheme = self.endpoint is None or self.endpoint.startswith(("http://", "https://"))
        check_fields(
            self,
            {
                "endpoint": has_scheme or "must begin with http:// or https://",
                "sample_ratio": 0 <= self.sample_ratio <= 1 or "must be from 0 to 1",
            },
        )


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Everything that a server is made of."""

    model: ServedModelConfig
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own need keys, or ``access.insecure``."""
    port: int = 8000
    """0 takes a free one."""
    unix_socket: str | None = None
    """Path of a socket to listen on in place of ``host`` and ``port``, for this user alone."""
    root_path: str = ""
    """That a proxy has before all paths, as ``/llm``; they are answered with it and without."""
    num_replicas: int = 1
    """Engines, each in a process of its own; on GPUs each takes ``engine.tensor_parallel_size`` of those visible."""
    max_pieces_per_s: int | None = None
    """That many streams together are told in, so that each piece has several tokens; first tokens never wait. With so
    few streams that each may have 18 pieces a second of it, each token comes alone. None: 300 for each processor of the
    machine, so that its telling takes less than 2 % of it."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    accounting: AccountingConfig = field(default_factory=AccountingConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    drain: DrainConfig = field(default_factory=DrainConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    content: ContentConfig = field(default_factory=ContentConfig)
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    log_format: Literal["text", "json"] = "text"
    """``json``: one object a line, with ``request_id``, ``replica`` and ``weight_version`` where they are known."""

    @property
    def is_local(self) -> bool:
        """Whether this machine alone reaches the listener."""
        return self.unix_socket is not None or self.host in LOOPBACK_HOSTS

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.model.name or self.model.path

    @property
    def _most_replicas(self) -> float:
        """That may be asked for at first."""
        most = self.scaling.max_replicas if self.scaling.enabled else None
        return math.inf if most is None else most

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "port": 0 <= self.port < 2**16 or "must be from 0 to 65535",
                "max_pieces_per_s": self.max_pieces_per_s is None or self.max_pieces_per_s >= 1 or "must be at least 1",
                "root_path": (self.root_path == "" or self.root_path[0] == "/" != self.root_path[-1])
                or "must begin with / and not end with it",
                "model": not self.model.adapters
                or ("" in self.model.adapters and "adapters must have names that are not empty")
                or self.model_name not in self.model.adapters
                or f"no adapter can be called {self.model_name!r}: the model itself is",
                "num_replicas": 1 <= self.num_replicas <= self._most_replicas
                or ("must be at least 1" if self.num_replicas < 1 else "must be at most scaling.max_replicas"),
            },
        )
