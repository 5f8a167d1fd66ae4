"""What an algorithm needs. Imports neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an algorithm needs; the rest takes no memory and no time."""

    critic: bool = False
    """A second network that predicts returns, with an optimizer of its own."""
    reference: bool = False
    """A frozen copy of the initial policy."""
    log_probs: bool = False
    """The policy's log-probabilities before credit is given. A step of several updates has them in any case."""
    final_values: bool = False
    """The critic's values of the states after samples that were cut."""
    entropies: bool = False
    """The entropy of the policy at each token, in the loss."""
    old_entropies: bool = False
    """The same before credit is given."""
    whole_samples: bool = False
    """All tokens of a sample together in the policy's loss; answers longer than what goes through the output head at
    once go through it twice."""
    groups: bool = False
    """Several answers to the same prompt, which are compared with each other."""
    greedy_answer: bool = False
    """The reward of a greedy answer to each prompt, which is not trained on."""
    rollouts: bool = True
    """Answers that the policy made, with rewards and log-probabilities; else samples of a data set will do."""
    scores: bool = False
    """A trained model with one score in place of the vocabulary."""
