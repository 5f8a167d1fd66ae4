"""Environments of the verifiers package: loaded, read for their prompts, and run turn by turn.

::

    names.py      what ``verifiers:ID`` means             export.py    in a process of its own: the prompts, as files
    loading.py    finds one, and refuses what cannot be   data.py      who starts that process and reads the files
    adapter.py    one conversation: reset and step        tool_calls.py  tool calls in what the model said
    turn_client.py  what the environment asks for the model's answers

Only ``loading``, ``adapter``, ``turn_client`` and ``export`` import the package; they run in processes of their own.
"""
