"""A reward that runs the program in an answer against tests, in processes that are shut off from everything else.

::

    scorer ── what to run, limits ──► confinement (namespaces, a file system of its own, limits)
                                           └─ process 1 of its namespace: when it ends, all under it end
                                                └─ the program
"""
