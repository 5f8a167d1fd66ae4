"""Which replica answers a request: one policy a file, pure functions of the request and the loads."""
