"""Getting a version of the weights from the trainer into the running engines, and proof that it arrived."""
