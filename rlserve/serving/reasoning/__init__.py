"""What a model thinks before it answers, split off from the answer."""
