"""What the owner of each key has had: requests, tokens and their price. Kept in a file that survives a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rlserve.errors import UserError
from rlserve.serving.config import AccountingConfig
from rlserve.serving.write_failures import WriteFailures
from rlserve.tracking.run_folder import write_atomically


@dataclass(kw_only=True)
class Usage:
    """Of one request, or of all of a key's."""

    num_requests: int = 0
    num_prompt_tokens: int = 0
    """Cached ones among them."""
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Count another's with it."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Accounts(Collector):
    """The usage of each key, by its name.

    Args:
        usage: of earlier.
        failures: hear of a file that cannot be written.
    """

    def __init__(
        self, config: AccountingConfig, usage: Mapping[str, Usage], failures: WriteFailures | None = None
    ) -> None:
        self._failures = failures or WriteFailures()
        self._config = config
        self._usage = dict(usage)
        self._has_news = False

    def add(self, name: str, usage: Usage) -> None:
        """A request of a key has ended."""
        self._usage.setdefault(name, Usage()).add(usage)
        self._has_news = True

    def usage(self, name: str) -> Usage:
        """Of a key."""
        return self._usage.get(name, Usage())

    def cost(self, usage: Usage) -> float:
        """In the currency of the configured prices."""
        config = self._config
        num_computed = usage.num_prompt_tokens - usage.num_cached_tokens
        return (
            num_computed * config.prompt_price
            + usage.num_cached_tokens * config.cached_price
            + usage.num_generated_tokens * config.generated_price
        ) / 1e6

    def take_news(self) -> str | None:
        """What the file is to say; None if none is asked for, or it says so already."""
        if self._config.usage_file is None or not self._has_news:
            return None
        self._has_news = False
        return json.dumps({name: asdict(usage) for name, usage in self._usage.items()}, indent=2) + "\n"

    def write(self, news: str) -> None:
        """Write the file; where it cannot be, what it is to say is news again. Reads nothing that requests change, so a
        thread may."""
        assert self._config.usage_file is not None
        try:
            write_atomically(Path(self._config.usage_file).expanduser(), news)
        except OSError as error:
            self._has_news = True
            self._failures.failed("usage", error)
        else:
            self._failures.succeeded("usage")

    def save(self) -> None:
        """Write the file, if one is asked for and there is news."""
        if (news := self.take_news()) is not None:
            self.write(news)

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        requests = CounterMetricFamily("rlserve:key_requests", "Requests of each key", labels=["key"])
        tokens = CounterMetricFamily("rlserve:key_tokens", "Tokens of each key, by kind", labels=["key", "kind"])
        cost = CounterMetricFamily("rlserve:key_cost", "What they cost, by the configured prices", labels=["key"])
        for name, usage in self._usage.items():
            requests.add_metric([name], usage.num_requests)
            tokens.add_metric([name, "prompt"], usage.num_prompt_tokens)
            tokens.add_metric([name, "cached"], usage.num_cached_tokens)
            tokens.add_metric([name, "generated"], usage.num_generated_tokens)
            cost.add_metric([name], self.cost(usage))
        yield from (requests, tokens, *((cost,) if self._config.has_prices else ()))


def read_accounts(config: AccountingConfig, failures: WriteFailures | None = None) -> Accounts:
    """With the usage of earlier, if there is a file of it.

    Raises:
        UserError: the file is none of ours.
    """
    path = None if config.usage_file is None else Path(config.usage_file).expanduser()
    if path is None or not path.exists():
        return Accounts(config, {}, failures)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Accounts(config, {str(name): Usage(**usage) for name, usage in content.items()}, failures)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"accounting.usage_file={path} cannot be read: {error}") from error
