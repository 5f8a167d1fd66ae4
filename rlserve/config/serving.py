"""From a path and overrides to the checked configuration of a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlserve.config.compose import compose
from rlserve.config.locate import locate
from rlserve.config.validation import validate
from rlserve.errors import ConfigurationError
from rlserve.serving.config import ServeConfig


def load_serving(path: str, overrides: Sequence[str] = ()) -> ServeConfig:
    """Load, compose and check a server's configuration. Starts nothing and imports no torch.

    Args:
        path: a YAML file, or the one that comes with rlserve (``conf/serve.yaml``).
        overrides: ``key=value``, in Hydra's grammar.

    Raises:
        ConfigurationError: all problems at once, each with the file it comes from, or ``override``.
    """
    composed = compose(locate(path, of_server=True), overrides, ServeConfig)
    config, tree_problems = validate(ServeConfig, composed.values, composed.spelling)
    known = {problem.key for problem in composed.problems}
    problems = [*composed.problems, *(problem for problem in tree_problems if problem.key not in known)]
    if problems or config is None:
        raise ConfigurationError(
            [replace(problem, source=problem.source or composed.source(problem.key)) for problem in problems]
        )
    return config
