"""The simulator: a run's policy, admission and batches on a virtual clock, over replicas and trainers that are models.

See ``docs/simulation.md`` for what is modelled and what is not.
"""
