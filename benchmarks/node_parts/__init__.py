"""Parts of ``benchmarks/node_times.py``."""
