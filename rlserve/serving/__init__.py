"""The rollout engine behind the API that clients already speak: OpenAI's, on one or several replicas.

::

    client ──HTTP──► front (FastAPI): keys, limits, prompts to tokens, tokens to text
                       │ requests                       ▲ new tokens
                       ▼                                │
                     replica pool: routing, health, failover
                       │ msgpack over a socket pair     │
                       ▼                                │
                     one process a replica: an engine in its loop
"""
