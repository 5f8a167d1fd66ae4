"""Runs one program shut off from the machine. Started as a script of its own: it imports the standard library alone.

It is told what to run as JSON on standard input, and says on the file descriptor named by its first argument how that
went: ``{"exit_code": 0}``, ``{"signal": 9}``, or ``{"refused": "why it could not be shut off"}``. Standard output is
the program's.

What the program sees, in namespaces of its own: the interpreter and the system's libraries, read only; an empty folder
``/answer`` in memory; no network, no other processes, no other file. As root it is started as nobody.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_APART = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYS_MOUNT_SETATTR = 442  # on every processor
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 1, 2
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_NOBODY = 65534
_NUM_OWN_PROCESSES = 2
"""This process and process 1 of the namespace, which count as the program's."""
_MAX_OPEN_FILES = 64
_ROOT_BYTES = 1 << 20
_INPUT = "input"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_LIBC = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """The kernel does not let the program be shut off; the message says what it did not let."""


def main() -> None:
    """Read what to run, run it, tell how it ended."""
    status_fd, *passed_fds = map(int, sys.argv[1:])
    what: dict[str, Any] = json.load(sys.stdin)
    _die_with_parent()
    try:
        if what["isolated"]:
            _shut_off(what)
            work = "/answer"
        else:
            os.chdir(what["root"])
            work = what["root"]
        _put_files(what["files"], what["stdin"])
    except (RefusedError, OSError) as error:
        os.write(status_fd, json.dumps({"refused": str(error)}).encode())
        return
    first = os.fork()
    if first == 0:
        _be_first_process(what, work, status_fd, passed_fds)
    os.close(status_fd)
    os.waitpid(first, 0)


def _put_files(files: dict[str, str], stdin: str) -> None:
    """Into the working folder; ``stdin`` becomes standard input."""
    for name, text in {**files, _INPUT: stdin}.items():
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    descriptor = os.open(_INPUT, os.O_RDONLY)
    os.unlink(_INPUT)
    os.dup2(descriptor, 0)
    os.close(descriptor)


def _be_first_process(what: dict[str, Any], work: str, status_fd: int, passed_fds: list[int]) -> None:
    """Start the program and wait for it; with this process the kernel ends all others of the namespace."""
    _die_with_parent()
    program = os.fork()
    if program == 0:
        os.close(status_fd)
        try:
            _become_program(what, work, passed_fds)
        except BaseException as error:
            os.write(2, f"{error}\n".encode())
        os._exit(127)
    for descriptor in (0, 1, *passed_fds):
        os.close(descriptor)
    while True:
        ended, status = os.wait()
        if ended == program:
            break
    how = {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"exit_code": os.WEXITSTATUS(status)}
    os.write(status_fd, json.dumps(how).encode())
    os._exit(0)


def _become_program(what: dict[str, Any], work: str, passed_fds: list[int]) -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for descriptor in passed_fds:
        os.set_inheritable(descriptor, True)
    _set_limits(what["limits"], isolated=what["isolated"])
    environment = dict.fromkeys(("HOME", "TMPDIR"), work) | what["environment"]
    os.execve(sys.executable, [sys.executable, "-I", "-B", *what["arguments"]], environment)


def _set_limits(limits: dict[str, int], *, isolated: bool) -> None:
    others = _NUM_OWN_PROCESSES if isolated else _num_threads_of_user()
    for which, limit in (
        (resource.RLIMIT_CPU, limits["cpu_time_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, others + limits["processes"]),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (limit, limit))


def _num_threads_of_user() -> int:
    """Threads that the user of this process has now: the kernel counts them all where there is no namespace."""
    number = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                number += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # it has ended
            continue
    return number


def _shut_off(what: dict[str, Any]) -> None:
    """Enter namespaces and a file system of their own.

    Raises:
        RefusedError: the kernel or its settings forbid it.
    """
    user, group = os.geteuid(), os.getegid()
    is_root = user == 0
    _unshare(_APART if is_root else _APART | _CLONE_NEWUSER)
    if not is_root:
        _map_user(user, group)
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    given_bytes = sum(len(text.encode(errors="surrogatepass")) for text in (*what["files"].values(), what["stdin"]))
    _build_root(what["root"], what["visible"], what["limits"]["file_bytes"] + given_bytes)
    os.chdir(what["root"])
    if is_root:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        _unshare(_CLONE_NEWUSER)  # processes are counted by user and namespace
    # A process in a chroot can make no further user namespace, in which it would have all rights again.
    os.chroot(".")
    os.chdir("/answer")
    _die_with_parent()  # changing the user has forgotten it


def _map_user(user: int, group: int) -> None:
    """Outside and inside this is the same user, without rights as soon as the program begins."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


def _build_root(root: str, visible: list[str], work_bytes: int) -> None:
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={_ROOT_BYTES},mode=0755")
    os.mkdir(f"{root}/answer")
    for path in (*visible, *_DEVICES):
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path) and os.path.dirname(path) == "/":  # /lib is usr/lib
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        elif os.path.exists(path):
            _write(target, "")
        else:
            continue
        _mount(path, target, None, _MS_BIND | _MS_REC, None)
    _make_read_only(root)
    _mount("tmpfs", f"{root}/answer", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={work_bytes},nr_inodes=1024,mode=0777")


def _make_read_only(path: str) -> None:
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    arguments = (_AT_FDCWD, path.encode(), _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    _check(_LIBC.syscall(_SYS_MOUNT_SETATTR, *arguments), f"mount_setattr({path})")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = _LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _check(result, f"mount({source or kind or ''}, {target})")


def _unshare(flags: int) -> None:
    if sys.platform != "linux":
        raise RefusedError(f"{sys.platform} has no namespaces")
    _check(_LIBC.unshare(flags), f"unshare({flags:#x})")


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _LIBC.prctl(option, value, 0, 0, 0)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise RefusedError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise RefusedError(f"writing {path}: {error.strerror}") from error


if __name__ == "__main__":
    main()
