"""The parts of ``benchmarks/trainer.py``: cases, the peers that do them, and what comes of it."""
