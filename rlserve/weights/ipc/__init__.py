"""Weights from the memory of one process into that of another on the same machine, without the host between them.

::

    receiver                          sender's lender                 sender's memory
    ────────                          ───────────────                 ───────────────
    connect, name the parcel ───────► handle, or that it is gone      payload, kept as long as anybody borrows it
    open, copy, close ◄══════════════════════════════════════════════ payload
    close the connection ───────────► the loan is over
"""
