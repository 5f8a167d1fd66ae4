"""What is asked: conversations of one turn or several, drawn from distributions or read from a file."""
