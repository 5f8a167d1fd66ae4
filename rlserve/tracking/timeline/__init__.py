"""What every slot did when, from the files of a run.

::

    events.jsonl ──▶ ownership.py: whose it was ──▶ activity.py: what it did ──▶ usage.py: shares of the time
                                                            └──▶ trace.py: trace.json
"""
