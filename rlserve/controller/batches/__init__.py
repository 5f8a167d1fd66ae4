"""Where the training loop has its batches from."""
