"""Build sdist → wheel, install the wheel in a clean environment outside the repository, import every module.

Run by ``make check``. The clean environment sees the dependencies of the present one through a ``.pth`` file, so
that nothing is downloaded, but not the checkout.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import rlserve
assert "site-packages" in rlserve.__file__, rlserve.__file__
names = [module.name for module in pkgutil.walk_packages(rlserve.__path__, "rlserve.")]
for name in names:
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != "verifiers":  # an extra that is not in the development environment
                raise
assert len(names) > 60, names
assert not {"engine", "trainers", "launch"} & set(sys.modules)
from importlib.resources import files
assert (files("rlserve") / "conf" / "rlhf.yaml").is_file(), "the packaged configuration is missing"
from rlserve.tracking.report.html import LIBRARY
assert (files("rlserve.launch.schedulers.slurm") / "job.sbatch.j2").is_file(), "a scheduler's template is missing"
assert (files("rlserve.tracking.report") / LIBRARY).is_file(), "the report's library is missing"
print(len(names), "modules imported from", rlserve.__file__)
"""


def run(*command: str | Path, cwd: Path) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rlserve-package-") as name:
        work = Path(name)
        shutil.copytree(ROOT, work / "source", symlinks=True, ignore=_what_git_ignores)  # tests may be reading ROOT
        run(sys.executable, "-m", "build", "--installer", "uv", "--outdir", work / "dist", work / "source", cwd=work)
        (wheel,) = (work / "dist").glob("*.whl")
        venv.create(work / "venv", with_pip=False)
        python = work / "venv" / "bin" / "python"
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=work)
        _lend_dependencies(work)
        run(python, "-c", IMPORT_EVERYTHING, cwd=work)
        run(work / "venv" / "bin" / "rlserve", "--version", cwd=work)
        run(work / "venv" / "bin" / "rlserve", "launch", "conf/rlhf.yaml", "--dry-run", cwd=work)


def _what_git_ignores(folder: str, names: list[str]) -> list[str]:
    """Those of ``names`` that are no part of the repository, and its history."""
    asked = subprocess.run(["git", "check-ignore", *names], cwd=folder, capture_output=True, text=True)
    return [".git", *asked.stdout.splitlines()]


def _lend_dependencies(work: Path) -> None:
    """Link every installed distribution but rlserve itself into the clean environment."""
    source = Path(sysconfig.get_paths()["purelib"])
    lib = next((work / "venv" / "lib").glob("python*/site-packages"))
    for entry in source.iterdir():
        target = lib / entry.name
        if not target.exists() and "rlserve" not in entry.name and entry.suffix != ".pth":
            target.symlink_to(entry)
    shutil.rmtree(lib / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
