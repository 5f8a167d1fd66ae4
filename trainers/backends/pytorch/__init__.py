"""Training in plain PyTorch: networks, passes, flat parameters, optimizer and the state of one rank."""
