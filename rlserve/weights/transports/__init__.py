"""The ways that weights can travel: each has an end with the sender and one with the receiver."""
