"""Correcting for samples that another distribution made than the policy at the start of the step."""
