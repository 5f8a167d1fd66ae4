"""How much a key may ask for in a minute. Pure: times are the caller's.

A token bucket holds a minute's worth and fills at a steady rate. Between any two moments, what was let in is at most
what a full bucket holds and what has flowed in meanwhile (https://en.wikipedia.org/wiki/Token_bucket).
"""

from __future__ import annotations

from rlserve.serving.keys import KeyOwner
from rlserve.serving.protocol.errors import ApiError

_MINUTE_S = 60.0


class TokenBucket:
    """
    Args:
        per_minute: what it holds, and what flows in during a minute.
        now_s: it is full then.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def take(self, amount: float, now_s: float) -> float:
        """Take an amount out. What is more than a full bucket is let in by a full one, which owes the rest then.

        Returns:
            0 where it was taken, else the time until it could be, and nothing was.
        """
        self._fill(now_s)
        missing = min(amount, self.per_minute) - self._level
        if missing > 1e-9 * self.per_minute:
            return missing / self.per_minute * _MINUTE_S
        self._level -= amount
        return 0.0

    def give_back(self, amount: float, now_s: float) -> None:
        """Put back what was taken and not used."""
        self._fill(now_s)
        self._level = min(self._level + amount, float(self.per_minute))

    def remaining(self, now_s: float) -> int:
        """What can be taken now."""
        self._fill(now_s)
        return max(int(self._level), 0)

    def full_in_s(self, now_s: float) -> float:
        """Time until it is full if nothing is taken."""
        self._fill(now_s)
        return (self.per_minute - self._level) / self.per_minute * _MINUTE_S

    def _fill(self, now_s: float) -> None:
        passed_s = max(now_s - self._at_s, 0.0)
        self._level = min(self._level + passed_s / _MINUTE_S * self.per_minute, float(self.per_minute))
        self._at_s = max(now_s, self._at_s)


class KeyLimits:
    """The limits of one key, over all of its requests."""

    def __init__(self, owner: KeyOwner, now_s: float) -> None:
        self._name = owner.name
        self._requests = None if owner.requests_per_minute is None else TokenBucket(owner.requests_per_minute, now_s)
        self._tokens = None if owner.tokens_per_minute is None else TokenBucket(owner.tokens_per_minute, now_s)

    def take_request(self, now_s: float) -> None:
        """Let a request in, or raise ``ApiError``."""
        self._take("requests", self._requests, 1, now_s)

    def take_tokens(self, number: int, now_s: float) -> None:
        """Let a request in that takes so many tokens at most, or raise ``ApiError``."""
        self._take("tokens", self._tokens, number, now_s)

    def give_tokens_back(self, number: int, now_s: float) -> None:
        """What a request did not use."""
        if self._tokens is not None:
            self._tokens.give_back(number, now_s)

    def headers(self, now_s: float) -> dict[str, str]:
        """As OpenAI tells its clients how much is left."""
        found: dict[str, str] = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(bucket.remaining(now_s))
                found[f"x-ratelimit-reset-{what}"] = f"{bucket.full_in_s(now_s):.3f}s"
        return found

    def _take(self, what: str, bucket: TokenBucket | None, amount: int, now_s: float) -> None:
        wait_s = 0.0 if bucket is None else bucket.take(amount, now_s)
        if bucket is not None and wait_s > 0:
            message = f"the key {self._name} may have {bucket.per_minute} {what} a minute: try again in {wait_s:.1f} s"
            raise ApiError(429, message, headers={"Retry-After": str(int(wait_s) + 1)})


class AllLimits:
    """Of all owners. What one has used counts for both of its keys, and after its keys were read anew, unless other
    limits are said of it then."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[KeyOwner, KeyLimits]] = {}

    def of(self, owner: KeyOwner, now_s: float) -> KeyLimits | None:
        """Of an owner; None where it has none."""
        if not owner.has_limits:
            return None
        known = self._known.get(owner.name)
        if known is None or known[0] != owner:
            known = self._known[owner.name] = (owner, KeyLimits(owner, now_s))
        return known[1]
