"""Packages: which are installed, in which version, and what is missing for what."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement

from rlserve.cli.doctor.base import Finding, bad, good, warning
from rlserve.errors import UserError
from rlserve.tracking.config import WandbConfig
from rlserve.tracking.wandb_settings import Surroundings, choose_mode

EXTRAS = {
    "gpu": "Triton's kernels, on GPUs",
    "flash": "the attention backend flash, on GPUs",
    "dev": "tests and checks",
}
"""What each extra is for."""
GetVersion = Callable[[str], str | None]


def examine_packages() -> Iterator[Finding]:
    """The packages of this environment."""
    yield from judge_packages(metadata.requires("rlserve") or (), installed_version)
    yield _wandb()


def judge_packages(requirements: Sequence[str], version_of: GetVersion) -> Iterator[Finding]:
    """One line for what a run needs, and one for each extra; ``requirements`` as in a package's metadata."""
    parsed = [Requirement(text) for text in requirements]
    needed = [each for each in parsed if _applies(each, "")]
    wrong = list(_wrong(needed, version_of))
    if wrong:
        yield bad("packages", f"{', '.join(wrong)}; mend it with: pip install --upgrade rlserve")
    else:
        shown = [
            f"{each.name} {version_of(each.name)}" for each in needed if each.name in ("torch", "ray", "transformers")
        ]
        yield good("packages", f"all {len(needed)} that a run needs, among them {', '.join(shown)}")
    for extra, purpose in EXTRAS.items():
        wrong = list(_wrong([each for each in parsed if _applies(each, extra) and each not in needed], version_of))
        if wrong:
            yield good(f"extra {extra}", f"not here: pip install 'rlserve[{extra}]' for {purpose} ({', '.join(wrong)})")
        else:
            yield good(f"extra {extra}", f"installed: {purpose}")


def installed_version(name: str) -> str | None:
    """Of a package; None where it is not installed."""
    return next((found.version for found in metadata.distributions(name=name)), None)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _wrong(requirements: Sequence[Requirement], version_of: GetVersion) -> Iterator[str]:
    for requirement in requirements:
        version = version_of(requirement.name)
        if version is None:
            yield f"{requirement.name} is missing"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, not {requirement.specifier}"


def _wandb() -> Finding:
    try:
        mode = choose_mode(WandbConfig(), Surroundings.read(os.environ))
    except UserError as error:
        return warning("wandb", str(error))
    why = {
        "online": "there is a key",
        "offline": "wandb login or WANDB_API_KEY puts runs online",
        "disabled": "as asked",
    }
    return good("wandb", f"{mode}: {why[mode]}")
