"""What runs the program under test: it defines its functions, then is called by the examiner, which is elsewhere.

Runs inside a confinement, with the file descriptors of calls and replies as arguments; no secret and no test is in this
process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def main(encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> None:
    """Answer calls until there are no more."""
    calls = os.fdopen(int(sys.argv[1]), encoding="utf-8")
    replies = os.fdopen(int(sys.argv[2]), "w", encoding="utf-8")
    names: dict[str, Any] = {"__name__": "answer"}
    with open("answer.py", encoding="utf-8", errors="surrogatepass") as file:
        text = file.read()
    exec(compile(text, "answer.py", "exec"), names)
    for line in calls:
        call = json.loads(line)
        args, kwargs = decode(call["args"]), decode(call["kwargs"])
        try:
            reply = {"value": encode(names[call["name"]](*args, **kwargs)), "args": encode(args)}
        except Exception as error:
            reply = {"raised": type(error).__name__, "message": str(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
