"""Every Triton program compiles for a GPU, which needs none: the interpreter accepts more than the compiler."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'rlserve[gpu]'")

COMPILE = """
import sys
from triton import compile, language
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rlserve.engine.attention import paged_programs
from rlserve.engine.kernels import triton_programs
from rlserve.engine.weights import sum_program

T = sys.argv[1]
MODEL = {f"{name}_ptr": f"*{T}" for name in ("qkv", "keys", "values", "out", "query_norm", "key_norm", "residual",
         "update", "weight", "gate_up", "logits")}
FLOATS = {f"{name}_ptr": "*fp32" for name in ("key_scales", "value_scales", "rotation", "partial", "peak", "total",
          "temperature", "uniform", "raw", "scaled", "log_prob", "behaviour")}
SUMS = {"pieces_ptr": "*i64", "sums_ptr": "*i64"}
WORDS = {f"{name}_ptr": "*i32" for name in ("positions", "slots", "tiles", "tables", "rows", "best", "token")}
NUMBERS = {"eps": "fp32", "scale": "fp32", "softcap": "fp32", "num_tiles": "i32"}
HEADS = {"NUM_HEADS": 16, "NUM_KV_HEADS": 8, "HEAD_DIM": 128}
VOCABULARY = {"NUM_CHUNKS": 38, "VOCAB": 151936, "CHUNK": 4096}

def check(module, name, stored=None, **constants):
    program = getattr(module, name)
    known = MODEL | FLOATS | SUMS | WORDS | NUMBERS
    if stored:
        known |= {"keys_ptr": stored, "values_ptr": stored}
    signature = {argument: known.get(argument, "constexpr") for argument in program.arg_names}
    signature |= {argument: "constexpr" for argument in constants}
    places = {(program.arg_names.index(argument),): value for argument, value in constants.items()}
    aligned = {(place,): [["tt.divisibility", 16]] for place, argument in enumerate(program.arg_names)
               if signature[argument].startswith("*")}
    compiled = compile(ASTSource(program, signature, places, aligned), target=GPUTarget("cuda", 90, 32),
                       options={"num_warps": 4, "num_stages": 3})
    if name == "attend_pages" and T != "fp32":
        assert "mma" in compiled.asm["ptx"], "no tensor cores"
        assert "cp.async" in compiled.asm["ptx"], "keys and values are not loaded ahead"
    assert compiled.metadata.shared <= 227 * 1024, "more shared memory than a multiprocessor has"
    print(name, compiled.metadata.shared)

no_scales = {"key_scales_ptr": None, "value_scales_ptr": None}
store = HEADS | {"HALF_BLOCK": 64, "LARGEST": 0.0} | no_scales
check(paged_programs, "rotate_and_store", **store, HAS_NORM=True, NORM_OFFSET=0.0)
check(paged_programs, "rotate_and_store", **store, HAS_NORM=False, NORM_OFFSET=1.0, query_norm_ptr=None,
      key_norm_ptr=None)
attend = HEADS | {"BLOCK_D": 128, "PAGE_SIZE": 16, "IS_QUANTISED": False} | no_scales
no_splits = {"partial_ptr": None, "peak_ptr": None, "total_ptr": None}
check(paged_programs, "attend_pages", **attend, **no_splits, BLOCK_M=16, TILE=32, WINDOW=0, HAS_SOFTCAP=False,
      SINGLE=True, NUM_SPLITS=1)
check(paged_programs, "attend_pages", **attend, BLOCK_M=16, TILE=32, WINDOW=64, HAS_SOFTCAP=True, SINGLE=True,
      NUM_SPLITS=4)
check(paged_programs, "attend_pages", **attend, **no_splits, BLOCK_M=64, TILE=64 if T != "fp32" else 32, WINDOW=0,
      HAS_SOFTCAP=False, SINGLE=False, NUM_SPLITS=1)
# What a quantised cache adds is the same for heads of half the size, which compile quicker in float32.
size = 64 if T == "fp32" else 128
heads = HEADS | {"HEAD_DIM": size}
for stored, largest in (("*i8", 127.0), ("*fp8e4nv", 448.0)):
    check(paged_programs, "rotate_and_store", stored, **heads, HALF_BLOCK=size // 2, HAS_NORM=True, NORM_OFFSET=0.0,
          LARGEST=largest)
    attend = heads | {"BLOCK_D": size, "PAGE_SIZE": 16, "IS_QUANTISED": True, "WINDOW": 0, "HAS_SOFTCAP": False}
    check(paged_programs, "attend_pages", stored, **attend, BLOCK_M=16, TILE=32, SINGLE=True, NUM_SPLITS=4)
    check(paged_programs, "attend_pages", stored, **attend, **no_splits, BLOCK_M=64, TILE=64 if T != "fp32" else 32,
          SINGLE=False, NUM_SPLITS=1)
check(paged_programs, "join_splits", NUM_HEADS=16, HEAD_DIM=128, BLOCK_D=128, NUM_SPLITS=4)
check(triton_programs, "add_rms_norm", SIZE=1000, BLOCK=1024, HAS_UPDATE=True, OFFSET=0.0)
check(triton_programs, "add_rms_norm", SIZE=1000, BLOCK=1024, HAS_UPDATE=False, OFFSET=1.0, update_ptr=None)
check(triton_programs, "gated_activation", SIZE=3072, BLOCK=1024, IS_GELU=False)
check(triton_programs, "gated_activation", SIZE=3072, BLOCK=1024, IS_GELU=True)
check(triton_programs, "weigh_chunks", **VOCABULARY)
check(triton_programs, "draw_tokens", **VOCABULARY, CHUNKS_BLOCK=64)
bits = language.int32 if T == "fp32" else language.int16
check(sum_program, "sum_bits", SPAN=65536, BLOCK=2048, BITS=bits)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_programs_compile_for_hopper(dtype: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, dtype], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 19
