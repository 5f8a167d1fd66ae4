"""The NVIDIA GPUs of this machine, as CUDA will number them and as Ray will name them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlserve.errors import PoolError

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_TIMEOUT_S = 30.0
_SLICE = "-MIG-"
_NO_DEVICES = "No devices were found"
_REMEDY = f"mend the driver, or run on the CPU: set {VISIBLE_DEVICES} to nothing, or ask for CPU slots (pool=two)"
_MODEL = re.compile(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")
_SLICE_LINE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (\S+)\)")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, or a MIG slice of one, which is a device of its own."""

    type: str
    uuid: str


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """What CUDA will see in ``environment``, in its order; empty where there is no GPU or none is wanted.

    Raises:
        PoolError: the driver does not answer, or CUDA_VISIBLE_DEVICES names what is not there.
    """
    visible = environment.get(VISIBLE_DEVICES)
    if visible is not None and not _named(visible):
        return ()
    gpus, slices = _ask_driver()
    if visible is None:
        return tuple(device for gpu in gpus for device in slices.get(gpu.uuid, (gpu,)))
    return tuple(_find(name, gpus, slices, visible) for name in _named(visible))


def has_slices(gpus: Sequence[Gpu]) -> bool:
    """Whether MIG slices are among them."""
    return any(gpu.uuid.startswith("MIG-") for gpu in gpus)


def is_slice(type_name: str) -> bool:
    """Whether devices of this type are MIG slices."""
    return _SLICE in type_name


def type_of(product_name: str) -> str:
    """The name that Ray gives to nodes with this product: ``NVIDIA H100 80GB HBM3`` → ``H100``.

    That is the words in capitals up to the first with a digit, or else the whole name with hyphens
    (``GeForce-RTX-4090``). Ray has a name of its own for the small A100 but does not use it for nodes; we do.
    """
    match = _MODEL.match(product_name)
    model = match.group(1).replace(" ", "-") if match else ""
    if len(model) < 2:
        return re.sub(r"^NVIDIA\s+", "", product_name).strip().replace(" ", "-")
    return f"{model}-40G" if model == "A100" and "40GB" in product_name else model


def _named(visible: str) -> tuple[str, ...]:
    """The devices that a value of CUDA_VISIBLE_DEVICES names; CUDA stops reading at -1."""
    names: list[str] = []
    for name in visible.split(","):
        if name.strip() in ("", "-1", "NoDevFiles"):
            break
        names.append(name.strip())
    return tuple(names)


def _find(name: str, gpus: Sequence[Gpu], slices: Mapping[str, tuple[Gpu, ...]], visible: str) -> Gpu:
    """The device of one entry: an index, or a UUID or its beginning."""
    if name.isdecimal():
        if int(name) < len(gpus):
            gpu = gpus[int(name)]
            if of_gpu := slices.get(gpu.uuid, (gpu,)):
                return of_gpu[0]  # all that CUDA sees of a GPU in slices that is named as a whole
    else:
        devices = [*gpus, *(each for several in slices.values() for each in several)]
        found = [device for device in devices if device.uuid.startswith(name)]
        if len(found) == 1:
            return found[0]
    there = ", ".join(f"{index}: {gpu.type}" for index, gpu in enumerate(gpus)) or "no GPU"
    raise PoolError(f"{VISIBLE_DEVICES}={visible} names {name}, but there is {there}")


def _ask_driver() -> tuple[tuple[Gpu, ...], dict[str, tuple[Gpu, ...]]]:
    """All GPUs, and the slices of those that are cut into slices by their UUID."""
    executable = shutil.which("nvidia-smi")
    if executable is None:
        if nodes := sorted(Path("/dev").glob("nvidia[0-9]*")):
            raise PoolError(f"there are GPUs ({nodes[0]}) but no nvidia-smi on the PATH to ask about them; {_REMEDY}")
        return (), {}
    gpus: list[Gpu] = []
    cut: dict[str, Gpu] = {}
    for line in _run(executable, "--query-gpu=name,uuid,mig.mode.current", "--format=csv,noheader"):
        name, uuid, slicing, *_ = [*(field.strip() for field in line.split(",")), "", ""]
        gpus.append(Gpu(type=type_of(name), uuid=uuid))
        if slicing == "Enabled":
            cut[uuid] = gpus[-1]
    return tuple(gpus), dict(_slices(_run(executable, "-L"), cut)) if cut else {}


def _slices(lines: Sequence[str], cut: Mapping[str, Gpu]) -> Iterator[tuple[str, tuple[Gpu, ...]]]:
    """From ``nvidia-smi -L``: under the line of each GPU one for each of its slices."""
    for gpu in cut.values():
        start = next(number for number, line in enumerate(lines) if gpu.uuid in line)
        found: list[Gpu] = []
        for line in lines[start + 1 :]:
            if (match := _SLICE_LINE.match(line)) is None:
                break
            found.append(Gpu(type=f"{gpu.type}{_SLICE}{match.group(1)}", uuid=match.group(2)))
        yield gpu.uuid, tuple(found)


def _run(*command: str) -> list[str]:
    """The lines that nvidia-smi prints.

    Raises:
        PoolError: it failed, or does not answer.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise PoolError(f"nvidia-smi did not answer within {_TIMEOUT_S:g} s; {_REMEDY}") from None
    except OSError as error:
        raise PoolError(f"nvidia-smi cannot be run ({error}); {_REMEDY}") from error
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    if _NO_DEVICES in answer.stdout:
        return []
    if answer.returncode != 0:
        said = " ".join((answer.stdout + answer.stderr).split()) or "it says nothing"
        raise PoolError(f"nvidia-smi failed with exit code {answer.returncode} ({said}); {_REMEDY}")
    return lines
