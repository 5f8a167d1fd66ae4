"""What ``benchmarks/chaos.py`` does to runs, and how it judges them."""
