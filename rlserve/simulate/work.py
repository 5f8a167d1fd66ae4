"""Samples and prompt groups on their way through a simulated run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupWork:
    """What one prompt group takes."""

    num_prompt_tokens: int
    lengths: tuple[int, ...]
    """Tokens of its answers."""
    num_greedy: int = 0
    """The last so many of them are compared with, and not trained on."""

    @property
    def trained_lengths(self) -> tuple[int, ...]:
        """Tokens of the answers that are trained on."""
        return self.lengths[: len(self.lengths) - self.num_greedy]


@dataclass(eq=False, slots=True)
class Sample:
    """One answer in the making."""

    group: Group
    length: int
    """Tokens that it will have."""
    num_done: float = 0.0
    """Tokens that it has, as of when it last came to a replica or left one."""
    started_at: float = 0.0
    """Steps that its replica had done when it started there."""


@dataclass(eq=False, slots=True)
class Group:
    """One prompt group."""

    id: str
    position: int
    work: GroupWork
    attempt: int = 0
    min_version: int = 0
    """Of the weights of a replica that may take it."""
    oldest_version: int = -1
    """Of its tokens; -1 while it has none."""
    unfinished: list[Sample] = field(default_factory=list)
    num_running: int = 0
    """Samples with KV blocks on the replica that it is on."""
    brought: tuple[tuple[Sample, float], ...] = ()
    """Samples that were unfinished when it came to that replica, with the tokens that they had then."""
    brought_oldest_version: int = -1

    def arrive(self) -> None:
        """A replica has it."""
        self.brought = tuple([(sample, sample.num_done) for sample in self.unfinished])
        self.brought_oldest_version = self.oldest_version

    def take_back(self) -> None:
        """That replica is lost, and so is what it made."""
        self.unfinished = [sample for sample, _ in self.brought]
        for sample, num_done in self.brought:
            sample.num_done = num_done
        self.oldest_version = self.brought_oldest_version

    @property
    def num_made(self) -> float:
        """Tokens that the replica which has it has made, as far as its samples have ended or were taken out there."""
        return sum(sample.num_done - num_done for sample, num_done in self.brought)

    @property
    def num_tokens(self) -> int:
        """Generated for it, once it is done."""
        return sum(self.work.lengths)

    @property
    def num_trained_tokens(self) -> int:
        """Prompts included."""
        lengths = self.work.trained_lengths
        return sum(lengths) + self.work.num_prompt_tokens * len(lengths)

    @property
    def num_resumed_tokens(self) -> int:
        """Prompt, and tokens that came along: what breaks ties between replicas."""
        done = sum(self.work.lengths) - sum(sample.length - int(sample.num_done) for sample in self.unfinished)
        return self.work.num_prompt_tokens + done


@dataclass(frozen=True, slots=True)
class Scored:
    """A group that may be trained on, as the buffer wants it."""

    group: Group
    oldest_version: int
