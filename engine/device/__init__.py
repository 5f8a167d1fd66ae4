"""Where an engine computes: backends, transfers, memory."""
