"""From rewards to advantages: pure functions of the whole batch, one file an estimator."""
