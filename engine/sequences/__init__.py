"""The samples on their way through the engine, and what is kept of each."""
