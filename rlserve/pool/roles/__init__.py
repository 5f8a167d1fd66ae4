"""The two roles of a worker: what it does while it rolls out, and while it trains."""
