"""What ``benchmarks/gpu.py`` measures, one file for each kind of part."""
