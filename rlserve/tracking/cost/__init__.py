"""What a run costs: which time of its slots went into what. Pure bookkeeping of the run's own events.

::

    events, as they come or from events.jsonl ──▶ ledger.py ──▶ statement.py: totals, at any moment
                                                    │
                           slot_time.py: whose a slot was, and which of its time is explained
                           stages.py: what the whole run was about
                           open_work.py: what was generated, until it is known what became of it
                           accounts.py: time by type, role and use

The same events give the same ledger, so a run that goes on, one that is taken up again and one that was killed are
counted alike. Times are whole nanoseconds, so sums are exact.
"""
