"""Environments: what answers the policy within a conversation, such as a tool or a game."""
