"""Where tests of Triton programs run: on the GPU if there is one, else on CPU tensors in Triton's interpreter.

The interpreter computes bfloat16 wrongly; float32 and float16 are right.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton: pip install 'rlserve[gpu]'")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
