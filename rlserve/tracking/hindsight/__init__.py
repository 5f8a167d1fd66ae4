"""What other splits would have made of a run's work, and so what its moves gained. Pure functions of its files."""
