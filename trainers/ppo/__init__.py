"""PPO with a critic: data-parallel, elastic at step boundaries, bit-identical on any number of ranks."""
