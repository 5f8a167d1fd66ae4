"""Compiles the C++ kernels with the system's compiler and loads them.

The library is kept under ``native`` of the cache folder, named by a hash of sources, compiler, flags and CPU, so a
change of any of them compiles anew. Of several processes at once one compiles and the others wait.

They use what the processor has. ``RLSERVE_MAX_CPU_ISA`` leaves out the newest instructions, so that the path of older
processors can be tested and measured on any: ``avx2``, ``avx512`` (without products of bfloat16), ``avx512_bf16``
(without the matrix unit, whose products oneDNN makes).
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from rlserve.errors import UserError
from rlserve.native.kernels_folder import kernels_folder

logger = logging.getLogger(__name__)

_SOURCE_FOLDER = Path(__file__).parent
# Hidden, because one process may load the kernels of several instruction sets, which share the names of templates.
# Vectors are in the source. Loops that a compiler makes vectors of by itself have a second form for memory that may
# overlap, chosen by the addresses, whose products and sums round in another order: the bits would depend on the heap.
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-fno-tree-vectorize",
)
MAX_ISA_VARIABLE = "RLSERVE_MAX_CPU_ISA"
_MAX_ISA_FLAGS = {
    "avx2": ("-mno-avx512f", "-mno-amx-tile", "-mno-amx-bf16"),
    "avx512": ("-mno-avx512bf16", "-mno-amx-tile", "-mno-amx-bf16"),
    "avx512_bf16": ("-mno-amx-tile", "-mno-amx-bf16"),
}
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "run_program": (_POINTER,),
    "put_rows": (_POINTER, _INT, _INT),
    "copy": (_POINTER, _INT, _INT),
    "get_rows": (_POINTER, _INT, _INT),
    "quantise": (_POINTER, _POINTER, _POINTER, _INT, _INT, _INT),
    "multiply": (*(_POINTER,) * 5, *(_INT,) * 4),
    "attend": (*(_POINTER,) * 6, _INT),
    "attend_int8": (*(_POINTER,) * 6, _INT),
    "add_rms_norm": (_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _FLOAT, _FLOAT, _INT),
    "silu_mul": (_POINTER, _POINTER, _INT, _INT, _INT),
    "gelu_tanh_mul": (_POINTER, _POINTER, _INT, _INT, _INT),
    "sample": (_POINTER, _INT, _INT, *(_POINTER,) * 7, _INT, *(_POINTER,) * 4, _INT),
    "packed_norm": (*(_POINTER,) * 3, _INT, _INT, _FLOAT, _FLOAT, _INT),
    "packed_norm_backward": (*(_POINTER,) * 7, _INT, _INT, _FLOAT, _FLOAT, _INT),
    "packed_gate_backward": (*(_POINTER,) * 4, *(_INT,) * 4),
    "packed_attend": (*(_POINTER,) * 4, _INT),
    "packed_attend_backward": (*(_POINTER,) * 7, _INT),
}


class NativeBuildError(Exception):
    """The kernels could not be compiled; the message says why."""


@cache
def load_library() -> ctypes.CDLL:
    """The compiled kernels; each function of ``_SIGNATURES`` exists as ``NAME_float32`` and ``NAME_bfloat16``.

    Raises:
        NativeBuildError: no compiler, it failed, or the cache folder cannot be written.
        UserError: ``RLSERVE_MAX_CPU_ISA`` names no instruction set of this machine.
    """
    library = ctypes.CDLL(str(_build()))
    for name, types in _SIGNATURES.items():
        for dtype in ("float32", "bfloat16"):
            function = getattr(library, f"{name}_{dtype}")
            function.argtypes, function.restype = types, None
    library.cap_float32.argtypes, library.cap_float32.restype = (_POINTER, _INT, _INT, _FLOAT, _INT), None
    library.score_float32.argtypes = (_POINTER, _INT, _INT, _POINTER, _FLOAT, _POINTER, _INT)
    library.score_float32.restype = None
    library.round_bfloat16.argtypes, library.round_bfloat16.restype = (_POINTER, _INT, _INT), None
    library.packed_add_rows_float32.argtypes = (*(_POINTER,) * 3, *(_INT,) * 3)
    library.packed_add_rows_float32.restype = None
    for name in ("int16", "int32"):
        function = getattr(library, f"weighted_sum_{name}")
        function.argtypes, function.restype = (_POINTER, ctypes.c_int64, _INT), ctypes.c_uint64
    return library


def find_kernels() -> Path | None:
    """The compiled kernels, if they are there for this machine already. Compiles nothing.

    Raises:
        NativeBuildError: there is no compiler.
    """
    try:
        target = _target(_compiler())
    except (OSError, subprocess.CalledProcessError) as error:
        raise NativeBuildError(f"{_compiler()}: {error}") from error
    return target if target.exists() else None


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _target(compiler: str) -> Path:
    """Where the kernels that ``compiler`` makes are kept."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return kernels_folder() / f"kernels-{_key(version)}.so"


def _build() -> Path:
    compiler = _compiler()
    sources = sorted(_SOURCE_FOLDER.glob("*.cpp"))
    try:
        target = _target(compiler)
        folder = target.parent
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            with (folder / f"{target.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # one process compiles, the others wait
                if not target.exists():
                    _compile(compiler, sources, target)
    except subprocess.CalledProcessError as error:
        raise NativeBuildError(f"{compiler} failed: {error.stderr.strip()[-2000:]}") from error
    except (OSError, RuntimeError) as error:
        raise NativeBuildError(str(error)) from error
    return target


def _compile(compiler: str, sources: list[Path], target: Path) -> None:
    logger.info("compiling the CPU kernels with %s, once; kept as %s", compiler, target)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(handle)
    try:
        # The OpenMP runtime must be the one torch has loaded: two of them would each keep its own threads.
        runtime = _torch_openmp()
        libraries = ["-nodefaultlibs", str(runtime), "-lstdc++", "-lm", "-lc", "-lgcc_s", "-lgcc"] if runtime else []
        with tempfile.TemporaryDirectory(dir=target.parent) as folder, ThreadPoolExecutor() as threads:
            objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
            commands = [
                [compiler, *_compiler_flags(), "-fopenmp", "-c", str(source), "-o", made]
                for source, made in zip(sources, objects, strict=True)
            ]
            list(threads.map(_run, commands))
            _run([compiler, *_compiler_flags(), "-shared", "-fopenmp", *objects, *libraries, "-o", name])
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _compiler_flags() -> tuple[str, ...]:
    name = os.environ.get(MAX_ISA_VARIABLE)
    if not name:
        return _FLAGS
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise UserError(f"{MAX_ISA_VARIABLE}={name} is for x86 processors; unset it on {platform.machine()}")
    if name not in _MAX_ISA_FLAGS:
        raise UserError(f"{MAX_ISA_VARIABLE}={name} is not known: use {', '.join(_MAX_ISA_FLAGS)}, or unset it")
    return (*_FLAGS, *_MAX_ISA_FLAGS[name])


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def _torch_openmp() -> Path | None:
    package = Path(torch.__file__).parent
    found = [*package.glob("lib/libgomp*.so*"), *package.parent.glob("torch.libs/libgomp*.so*")]
    return found[0] if found else None


def _key(compiler_version: str) -> str:
    digest = hashlib.sha256()
    for path in sorted([*_SOURCE_FOLDER.glob("*.cpp"), *_SOURCE_FOLDER.glob("*.h")]):
        digest.update(path.read_bytes())
    runtime = _torch_openmp()
    # By its name: the kernels hold no path to it, so they serve any environment on this machine with the same one.
    for text in (compiler_version, *_compiler_flags(), _cpu_description(), runtime.name if runtime else ""):
        digest.update(text.encode())
    return digest.hexdigest()[:24]


def _cpu_description() -> str:
    """What ``-march=native`` looks at: a home folder may be shared by unlike machines."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in path.read_text().splitlines() if line.startswith(wanted)}))
