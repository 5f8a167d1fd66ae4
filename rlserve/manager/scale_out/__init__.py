"""How many nodes a run asks its cluster for: pure functions of plain data."""
