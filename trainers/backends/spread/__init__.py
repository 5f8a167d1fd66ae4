"""A policy that no rank has whole: what goes to engines and checkpoints all the same."""
