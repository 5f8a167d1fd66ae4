"""What is learnt: one file an algorithm. Knows no optimizer, no ranks and no model."""
