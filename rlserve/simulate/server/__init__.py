"""A server's replicas on a virtual clock: what a scaling policy makes of a load, and what clients feel of it."""
