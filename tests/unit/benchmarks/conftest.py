"""The benchmarks are scripts beside each other: their folder is put on the path, as Python does for a script."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "benchmarks"
sys.path.append(str(FOLDER))
