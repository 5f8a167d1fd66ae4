"""What things cost in a simulated run."""
