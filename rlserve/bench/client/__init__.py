"""The client: bodies of requests, event streams and answers as pure functions, and the connections around them."""
