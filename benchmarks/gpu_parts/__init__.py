"""What ``benchmarks/gpu.py`` measures, one file a kind of part."""
