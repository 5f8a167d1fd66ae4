"""Process groups, the store where their ranks meet, and addresses: the floor under engine, trainers and weights."""
