"""The load that a paced run is put under: how long answers are, which groups are kept, how long tools take."""
