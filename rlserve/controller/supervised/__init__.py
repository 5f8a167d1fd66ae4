"""What stands in the place of the rollout side where a run learns from a data set: all gangs train, none serves."""
