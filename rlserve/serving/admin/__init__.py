"""What an operator does to a server while it runs, behind a listener of its own."""
