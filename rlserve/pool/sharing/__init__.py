"""One Ray cluster for several runs: who may have how many of its slots, and where that is kept."""
