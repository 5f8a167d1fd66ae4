"""What a run, or a sweep of several, shows: a table, JSON, a picture."""
