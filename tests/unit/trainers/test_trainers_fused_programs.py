"""Every Triton program of the layers compiles for a GPU, which needs none: the interpreter accepts more than the
compiler."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'rlserve[gpu]'")

COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rlserve.trainers.backends.pytorch.fused import programs

COMPUTED = {f"{name}_ptr": "*bf16" for name in ("inputs", "outputs", "gradient", "of_inputs", "packed", "of_packed",
            "queries", "keys", "values", "update", "of_update")}
FLOATS = {f"{name}_ptr": "*fp32" for name in ("weight", "of_weight", "cos", "sin", "query_norm", "key_norm",
          "of_norms", "sum", "of_sum")}
NUMBERS = {"eps": "fp32", "num_rows": "i32", "num_positions": "i32", "num_elements": "i32"}

def check(name, **constants):
    program = getattr(programs, name)
    known = COMPUTED | FLOATS | NUMBERS
    signature = {argument: known.get(argument, "constexpr") for argument in program.arg_names}
    signature |= {argument: "constexpr" for argument in constants}
    places = {(program.arg_names.index(argument),): value for argument, value in constants.items()}
    compiled = compile(ASTSource(program, signature, places, {}), target=GPUTarget("cuda", 90, 32))
    print(name, compiled.metadata.shared)

for direction in ("forward", "backward"):
    sizes = {"SIZE": 1000, "BLOCK": 1024, "ROWS": 4}
    check(f"norm_{direction}", **sizes, OFFSET=0.0, HAS_UPDATE=True)
    unused = ("update_ptr", "sum_ptr") if direction == "forward" else ("of_sum_ptr", "of_update_ptr")
    check(f"norm_{direction}", **sizes, OFFSET=1.0, HAS_UPDATE=False, **dict.fromkeys(unused))
    heads = {"NUM_HEADS": 16, "NUM_KV_HEADS": 8, "SIZE": 128, "HALF_BLOCK": 64, "ROWS": 32}
    check(f"rotate_{direction}", **heads, HAS_NORM=True)
    unused = ("query_norm_ptr", "key_norm_ptr") + (("packed_ptr", "of_norms_ptr") if direction == "backward" else ())
    check(f"rotate_{direction}", **heads, HAS_NORM=False, **dict.fromkeys(unused))
    for is_gelu in (False, True):
        check(f"gated_{direction}", SIZE=3072, BLOCK=1024, IS_GELU=is_gelu)
"""


def test_programs_compile_for_hopper() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 12
