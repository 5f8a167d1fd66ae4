"""What is minimised, token by token: one file a loss."""
