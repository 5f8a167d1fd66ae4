"""What a worker imports, and when."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from rlserve.pool.fork_server import ENGINE_MODULES, WORKER_MODULES
from rlserve.pool.imports import import_now, importing, look_at_all

ROLES = ("rlserve.pool.worker", "rlserve.pool.roles.engine_rank", "rlserve.pool.roles.train", *ENGINE_MODULES)


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_a_worker_that_rolls_out_imports_no_trainer() -> None:
    """Whatever drags transformers in again triples the start of a worker on a node that has just joined."""
    program = (
        "import json, sys\nfrom importlib import import_module\n"
        "for name in json.loads(sys.argv[1]): import_module(name)\n"
        "print([name for name in ('transformers', 'torch._dynamo', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(ROLES)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_trainer_imports_neither_ray_nor_scipy() -> None:
    """Ray's threads do not survive a fork, and SciPy is more than a quarter of what a trainer's imports would take. It
    is there for whoever wants it later."""
    program = (
        f"import sys\nfrom rlserve.pool.imports import import_now\nimport_now({WORKER_MODULES})\n"
        "print([name for name in ('ray', 'scipy') if name in sys.modules])\nimport scipy.optimize\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_hidden_while_importing_stays_where_it_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ModuleType("scipy")
    monkeypatch.setitem(sys.modules, "scipy", there)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    import_now(["colorsys"])
    assert sys.modules["scipy"] is there


def test_the_collector_rests_while_modules_are_imported_and_passes_over_them_later() -> None:
    gc.unfreeze()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 1000
    look_at_all()
    assert gc.get_freeze_count() == 0
    with pytest.raises(ValueError, match="broken"), importing():
        raise ValueError("broken")
    assert gc.isenabled()


def test_what_is_there_is_not_imported_again() -> None:
    gc.unfreeze()
    import_now(["json", "sys"])
    assert gc.get_freeze_count() == 0, "what lives by now is no module, and is collected"
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_now(["no_such_module"])
    assert gc.isenabled()
