"""Clients of a run: whoever asks its replicas over HTTP, while they roll out for training.

::

    front, in a thread of its own           │  the controller's event loop
    rlserve/serving/: keys, text, chunks    │
      RunReplicas.open(requests) ───────────┼──► ClientDesk ──RequestSpec──► router ──► replicas
                ▲                           │       │                                     │ ClientStreams
                └── RequestDelta ───────────┼───────┴──────── TokensStreamed ─────────────┘
"""
