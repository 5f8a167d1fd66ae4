"""From what the engine generates to what clients read. Pure."""
