"""Conversations between the policy and an environment, turn by turn, as samples to train on."""
