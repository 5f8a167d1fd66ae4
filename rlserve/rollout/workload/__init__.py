"""The load of a paced or simulated run: how long answers are, which groups are kept, how long tools take."""
