"""Kubernetes: a RayJob of the operator KubeRay, with a group of pods for each group of slots."""
