"""DeepSpeed's ZeRO: what every rank would hold alike is cut up among the ranks."""
