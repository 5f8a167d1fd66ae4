"""What a run was like: records of requests, and pure functions of them."""
