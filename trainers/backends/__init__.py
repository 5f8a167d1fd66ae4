"""What computes: one folder a backend. Knows no algorithm."""
