"""Weights by collective broadcast: who is in the group for a version, how they meet, and the bytes in buckets.

::

    receivers                      the sender's store                    sender
    ─────────                      ──────────────────                    ──────
    ask for a parcel ────────────► ask/1, ask/2 … ────────────────────► plan_round: all who ask, or who came in time
    join the group of the round ◄─ answer/1, answer/2 … ◄────────────── the same group, or a new one
                                   group of the round: every member joins, or is named
    payload ◄════════════════════════════ broadcast in buckets ════════ payload
"""
