"""Requests to the replicas, whoever makes them: what they are called, how urgent they are, which replica answers which.

::

    prompt groups (training) ──┐
    held-out prompts ──────────┼──► RequestSpec ──► Router ──► engine Request ──► a replica
    clients over HTTP ─────────┘
"""
