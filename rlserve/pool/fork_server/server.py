"""``python -m rlserve.pool.fork_server.server SOCKET PATH PARENT MODULE...``: import them, then fork on demand."""

from __future__ import annotations

import argparse
import array
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from dataclasses import dataclass

from rlserve.pool.imports import import_now
from rlserve.processes import end_with_parent

_NUM_STREAMS = 3
_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class _Request:
    command: list[str]
    environment: dict[str, str]
    folder: str
    streams: tuple[int, ...]
    """File descriptors of standard input, output and error."""


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m rlserve.pool.fork_server.server", description=__doc__)
    parser.add_argument("socket", type=int, help="file descriptor of a socket that listens")
    parser.add_argument("path", help="of the socket, not used here: it tells rlserve clean that the folder is in use")
    parser.add_argument("parent", type=int, help="process id of the driver, with which the server ends")
    parser.add_argument("modules", nargs="*")
    parser.add_argument(
        "--compile-kernels", action="store_true", help="have the CPU kernels ready for the first worker"
    )
    options = parser.parse_args()
    end_with_parent(options.parent)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the driver, which ends us
    with socket.socket(fileno=options.socket) as server:
        import_now(options.modules)  # and what is shared with the forks stays shared
        own_id = os.getpid()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes ended workers away
        if options.compile_kernels and os.fork() == 0:
            _compile_kernels(own_id)
        while True:
            connection, _ = server.accept()
            with connection:
                request = _receive(connection)
                if os.fork() == 0:
                    connection.close()
                    server.close()
                    _become(request, own_id)
                for stream in request.streams:
                    os.close(stream)
                connection.sendall(b"1")


def _compile_kernels(server_id: int) -> None:
    """In a fork, since it starts threads: have the kernels ready when the first worker needs them."""
    end_with_parent(server_id)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    from rlserve.native.library import NativeBuildError, load_library

    try:
        load_library()
    except NativeBuildError:  # whoever needs the kernels says so
        os._exit(1)
    os._exit(0)


def _receive(connection: socket.socket) -> _Request:
    head, ancillary, _, _ = connection.recvmsg(
        _LENGTH_BYTES, socket.CMSG_SPACE(_NUM_STREAMS * array.array("i").itemsize)
    )
    streams = array.array("i")
    streams.frombytes(ancillary[0][2])
    with connection.makefile("rb") as file:
        values = json.loads(file.read(int.from_bytes(head, "little")))
    return _Request(**values, streams=tuple(streams))


def _become(request: _Request, server_id: int) -> None:
    """Turn the fork into the process that was asked for; does not return."""
    try:
        end_with_parent(server_id)
        # A process group of its own: Ctrl-C in a terminal is for the driver alone, and when a worker dies, Ray kills
        # what is left in its group, which must not hold the other workers. Not a session: where Linux shares processors
        # out among sessions (autogroups), an engine that is ready to run waits for up to 0.2 s while others compute.
        os.setpgid(0, 0)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for target, stream in enumerate(request.streams):
            os.dup2(stream, target)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request.environment)
        os.chdir(request.folder)
        sys.argv = request.command
        runpy.run_path(request.command[0], run_name="__main__")
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
