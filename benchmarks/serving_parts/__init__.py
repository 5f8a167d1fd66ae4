"""Parts of ``serving.py``: a server to measure, a client that only counts, and the two measurements."""
