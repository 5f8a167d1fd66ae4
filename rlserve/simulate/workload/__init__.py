"""What a simulated run has to do: lengths of answers, and which prompt groups are worth training on."""
