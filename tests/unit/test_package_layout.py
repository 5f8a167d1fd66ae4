"""The package as Python sees it: every module imports, under one name only, and what must be light is light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rlserve

PACKAGE = Path(rlserve.__file__).parent
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}


def module_name(path: Path) -> str:
    """``engine/kv_cache/pool.py`` in the package → ``rlserve.engine.kv_cache.pool``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("rlserve", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def modules() -> list[str]:
    """Every module of the package but ``__main__``; the folders that are links are followed."""
    rooms = [path for room in sorted(ROOMS) for path in sorted((PACKAGE / room).glob("**/*.py"))]
    return [module_name(path) for path in [*sorted(PACKAGE.glob("*.py")), *rooms] if path.stem != "__main__"]


def modules_after_importing(names: list[str]) -> set[str]:
    """``sys.modules`` of a fresh interpreter that stands in the repository, where bare names could be found."""
    program = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(names)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=PACKAGE.parent,
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_the_linked_folders_are_part_of_the_package() -> None:
    assert {"engine", "trainers", "launch", "config", "pool", "manager", "rollout"} <= ROOMS


@pytest.mark.slow
def test_every_module_imports_and_no_linked_folder_under_its_bare_name() -> None:
    names = modules()
    loaded = modules_after_importing(names)
    assert set(names) <= loaded
    assert not {name for name in loaded if name.split(".")[0] in {"engine", "trainers", "launch", "conf"}}


def test_every_parts_configuration_imports_without_torch() -> None:
    names = [name for name in modules() if name.endswith(".config")] + ["rlserve.config.tree"]
    assert len(names) > 5
    loaded = modules_after_importing(names)
    assert not loaded & {"torch", "transformers", "ray", "hydra"}
