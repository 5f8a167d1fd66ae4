"""The engine itself: requests in, one step at a time, outputs out."""
