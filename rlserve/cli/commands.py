"""The commands: one a module, which is imported when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

COMMANDS: Mapping[str, str] = {
    "launch": "start a run, or take one up again",
    "submit": "the same as a job of Slurm, Kubernetes or a Ray cluster",
    "sweep": "a run for each combination of values, one after the other or each as a job",
    "resume": "go on with a run where it ran: on this machine, or by its scheduler",
    "cancel": "end a run, which saves first",
    "logs": "what a run, or its job, has written",
    "list": "the runs of a folder and how they stand",
    "status": "how one run stands, and how to go on with it",
    "move": "the gangs of a running run; bring one into another role by hand",
    "explain": "why a run's slots moved or stayed, and what each move gained or cost",
    "cost": "what a run's time went into and what it cost, or whether a change paid",
    "top": "one run, live in the terminal",
    "dashboard": "the same in a browser, of one run or all",
    "show": "print what a run's policy was asked and what it answered",
    "trace": "write a run's timeline, slot by slot, for Perfetto",
    "report": "make the picture of a run anew",
    "bench": "put an OpenAI-compatible server under load: latencies, throughput, goodput",
    "simulate": "what policies and splits would do with a pool, on a virtual clock",
    "compare": "several runs in one picture, and what differs between them",
    "eval": "score a checkpoint on held-out data",
    "export": "write a checkpoint as a model folder for other programs, and push it to a hub",
    "serve": "a model behind OpenAI's API, on one or several replicas",
    "init": "write a task of your own that runs at once: data, reward, test, run file",
    "doctor": "what this machine has, and what is missing for what",
    "clean": "remove caches and what ended runs left in the temporary folder",
}
"""Name, which is also the module's, and what ``--help`` says. A module has ``run(arguments) -> exit code``."""


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run a command of :data:`COMMANDS` and return the exit code."""
    exit_code: int = import_module(f"rlserve.cli.{name}").run(arguments)
    return exit_code
