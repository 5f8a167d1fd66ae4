"""CPU kernels in C++, compiled at first use: what the engine computes with, and the trainer where both must agree."""
