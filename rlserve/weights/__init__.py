"""How a version of the weights gets from the trainers into the running engines, and proof that it arrived.

::

    trainer's worker                    controller                        replica's worker
    ────────────────                    ──────────                        ────────────────
    Sender.take_snapshot  ◄── version ─ step boundary
    Sender.send           ◄─────────── (the next step trains)
      whole, or what changed
        │ SendingEnd.send ─ cargo ┐
        └ SentPart ─────────────► Offer ─► WeightChain ─ links that it lacks ─► Receiver.receive
                                                                                  │ ReceivingEnd.receive
                                  Receipt ◄───────────────── loaded, fingerprint ─┘
"""
