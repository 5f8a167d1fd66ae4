"""The package as Python sees it: every module imports, under one name only, and what must be light is light."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import rlserve

PACKAGE = Path(rlserve.__file__).parent
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}


ROOT = PACKAGE.parent
LINKED = ("engine", "trainers", "launch")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 400, 60, 8


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
    if find_spec("verifiers") is None:  # an extra that is not in the development environment
        names = [name for name in names if not name.startswith("rlserve.rollout.environments.verifiers.")]
    loaded = modules_after_importing(names)
    assert set(names) <= loaded
    assert not {name for name in loaded if name.split(".")[0] in {"engine", "trainers", "launch", "conf"}}


def test_every_parts_configuration_imports_without_torch() -> None:
    names = [name for name in modules() if name.endswith(".config")] + ["rlserve.config.tree"]
    assert len(names) > 5
    loaded = modules_after_importing(names)
    assert not loaded & {"torch", "transformers", "ray", "hydra"}


def sources() -> Iterator[tuple[str, str]]:
    """Path from the root of the repository and text of every source file."""
    for path, text in texts("rlserve", *LINKED):
        if tuple(path.split("/")[:2]) not in {("rlserve", name) for name in LINKED}:  # the links
            yield path, text


def texts(*folders: str) -> Iterator[tuple[str, str]]:
    """Path from the root of the repository and text of every Python file in some of its folders."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file."""
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def num_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without ``self``; none of a Triton program, which takes each pointer, stride and size by itself."""
    if any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list):
        return 0
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_files_functions_and_signatures_are_no_larger_than_one_can_read() -> None:
    """Files and functions of the tests and benchmarks too."""
    found, product = set(), dict(sources())
    for path, text in (*product.items(), *texts("tests", "benchmarks")):
        if len(text.splitlines()) > MAX_FILE_LINES:
            found.add(path)
        for function in functions(text):
            num_lines = (function.end_lineno or 0) - function.lineno + 1
            has_many_arguments = path in product and num_arguments(function) > MAX_ARGUMENTS
            if num_lines > MAX_FUNCTION_LINES or has_many_arguments:
                found.add(f"{path}: {function.name}")
    assert not found, f"split these, or give them a dataclass: {sorted(found)}"


def test_only_the_configuration_and_http_know_pydantic() -> None:
    importing = {
        path.rpartition("/")[0] for path, text in sources() if re.search(r"^\s*(from|import) pydantic", text, re.M)
    }
    assert importing == {"rlserve/config", "rlserve/serving/admin", "rlserve/serving/front", "rlserve/serving/protocol"}


def blocks(heading: str) -> list[str]:
    """The code blocks under a heading of ``docs/architecture.md``."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```", section, re.M | re.S)


def test_the_map_names_the_rooms_that_there_are() -> None:
    named = set(re.findall(r"(?:rlserve/)?(\w+)/", blocks("Map")[0]))
    inner = {path.parent.name for room in ROOMS for path in (PACKAGE / room).glob("*/__init__.py")}
    assert named >= ROOMS
    assert named - ROOMS <= inner | {"conf"}


def contracts() -> list[dict[str, Any]]:
    """Of import-linter, in the order of ``pyproject.toml``."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]
    return found


def test_the_floors_are_those_that_lint_imports_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = [layer.replace("rlserve.", "") for layer in contracts[0]["layers"]]
    assert blocks("Map")[1].splitlines() == layers
    on_a_floor = {name for layer in layers for name in layer.split(" | ")}
    assert on_a_floor >= ROOMS


def test_the_contract_of_the_engine_names_all_its_rooms() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (engine,) = (contract for contract in contracts if contract.get("containers") == ["rlserve.engine"])
    named = {name for layer in engine["layers"] for name in layer.split(" | ")}
    assert named == {path.parent.name for path in (ROOT / "engine").glob("*/__init__.py")} | {"config"}
