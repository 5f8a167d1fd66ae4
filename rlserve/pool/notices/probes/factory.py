"""Choosing a probe by ``pool.notice_probe``: the name of a cloud, or a function of the user's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from rlserve.errors import PoolError
from rlserve.pool.notices.probes import aws, azure, google
from rlserve.pool.notices.probes.base import Probe

CLOUDS: Mapping[str, Probe] = {"aws": aws.probe, "azure": azure.probe, "google": google.probe}


def find_probe(name: str) -> Probe:
    """The probe of a cloud, or ``path/to/file.py:function`` or ``package.module:function``.

    Raises:
        PoolError: there is no such cloud or function.
    """
    if name in CLOUDS:
        return CLOUDS[name]
    location, _, attribute = name.rpartition(":")
    try:
        module = _import_file(Path(location)) if location.endswith(".py") else import_module(location)
        probe = getattr(module, attribute)
    except (ImportError, OSError, ValueError, AttributeError) as error:
        raise PoolError(
            f"pool.notice_probe={name}: {error}; must be {', '.join(CLOUDS)}, path/to/file.py:function or "
            "package.module:function"
        ) from error
    if not callable(probe):
        raise PoolError(f"pool.notice_probe={name}: {attribute!r} is not a function")
    return probe  # type: ignore[no-any-return]


def _import_file(path: Path) -> Any:
    spec = spec_from_file_location(f"rlserve_probe_{path.stem}", path)
    assert spec is not None, f"{path} ends in .py"
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
