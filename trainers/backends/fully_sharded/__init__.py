"""Training of models that do not fit one GPU: parameters, gradients and moments cut into shards, by fully_shard."""
