"""The pool: which slots there are, and the long-lived worker process on each."""
