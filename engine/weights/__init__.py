"""Which version of the weights is in the model, how the next one gets in, and proof of what is there."""
