"""Load on any server that speaks OpenAI's API, and what it does under it.

::

    workloads/ ──► conversations of one turn or several, their texts made by prompts/
    load/      ──► when each begins: closed loop, Poisson, as recorded          (lengths.py, arrivals.py)
         │
    session.py     one run: warm-up, load, event loop's lag  ──► client/  one request ──► results/record.py
         │
    results/   ──► statistics, goodput, rates over time, whether the client was the limit
    report/    ──► table, JSON, picture

Everything but ``client/`` and ``session.py`` is a pure function of plain data. Times are seconds of one monotonic clock
of this process, from the beginning of the run.
"""
