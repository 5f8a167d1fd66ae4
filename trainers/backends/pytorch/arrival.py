"""What a rank is to hold in its new group, while it comes in: beside the next step, where ranks join.

::

    resize     │ step: forward and backward                     │ its first update
    ── start ──┼────────────────────────────────── finish ──────┼── stage, apply
               └ thread:  parameters ──► moments ──┘

Parameters and moments do not change between a boundary and the first update of the step after it, so what is sent
meanwhile is what the ranks held at the boundary. A rank that joins waits for its parameters before it computes with
them. What a rank held before stays until all have everything: until then a group that breaks loses nothing but the
ranks that it lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rlserve.trainers.backends.pytorch.optimizer import compacted, joined, rearranged
from rlserve.trainers.backends.pytorch.state import TrainingState
from rlserve.trainers.base import Traffic
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.exchange import carry_out, exchange_notes
from rlserve.trainers.elastic.holdings import Holdings
from rlserve.trainers.elastic.intervals import Interval, difference, intersection
from rlserve.trainers.elastic.standing import Standing
from rlserve.trainers.elastic.transfers import Transfer


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What all ranks of a group go on with; the same on each."""

    common: Standing
    """Where all stand."""
    holdings: Holdings
    keeps_moments: bool
    """Whether those that ranks hold are worth anything: before the first update all are zeros."""
    parameters: Sequence[Transfer]
    reference: Sequence[Transfer]
    """Of the frozen one, where there is one."""
    moments: Sequence[Transfer]
    traffic: Traffic
    """Of all of these."""


class Arrival:
    """Sends and receives what was agreed on: all at once in ``finish``, or from ``start`` on. ``finish`` comes before
    anything changes what the ranks hold, or needs all of it."""

    def __init__(self, state: TrainingState, group: Group, agreement: Agreement) -> None:
        """All ranks have settled the step that they were in."""
        self.is_awaited = False
        """Whether this rank waits for what comes in. Read by any thread."""
        self._state = state
        self._group = group
        self._agreement = agreement
        self._before = state.progress.standing()
        if not agreement.keeps_moments:
            state.optimizer.hold(())
        self._old = state.optimizer.moments
        wanted = agreement.holdings.held_by(group.rank)
        self._new = rearranged(self._old, wanted, state.optimizer)
        self._lacks_parameters = any(
            transfer.destination == group.rank for transfer in (*agreement.parameters, *agreement.reference)
        )
        self._has_parameters = threading.Event()
        self._is_complete = self._is_over = self._is_interrupted = False
        self._second: Group | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, second: Group) -> None:
        """Let all come in over a second group of the same ranks, in a thread of its own, which closes it. This rank
        steps with what it is to hold from now on."""
        self._state.optimizer.hold(self._new)
        self._state.progress.stand(self._agreement.common)
        self._group.wait_first(self._wait_for_all_parameters)
        device, ready = self._state.flat.vector.device, None
        if device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(torch.cuda.current_stream(device))  # after the last update
        self._second = second
        self._thread = threading.Thread(target=self._run_beside, args=(second, ready), name="arrival", daemon=True)
        self._thread.start()

    def wait_for_parameters(self) -> None:
        """Before this rank computes with them, or shows them.

        Raises:
            WorkerFailedError: a rank was lost on the way.
        """
        if self._lacks_parameters:
            self._wait_for_all_parameters()

    def finish(self) -> None:
        """Get everything, see that all others have too, and let go of what others hold now. All ranks call this
        together.

        Raises:
            WorkerFailedError: a rank was lost.
        """
        if self._thread is None:
            self._carry(self._group)
        else:
            with self._waiting():
                self._thread.join()
            self._raise_failure()
        self._hold_all()
        exchange_notes(self._group, "received", self._state.flat.vector.device)
        self._state.optimizer.hold(compacted(self._new))
        self._state.holdings = self._agreement.holdings

    def give_up(self) -> None:
        """The group is broken, or left: hold all that this rank had, and what has come in if it is complete."""
        if self._thread is None:
            return
        self.interrupt()
        self._thread.join()
        if self._is_over:
            return
        if self._is_complete:
            self._hold_all()
        else:
            self._is_over = True
            self._state.optimizer.hold(self._old)
            self._state.progress.return_to(self._before)

    def interrupt(self) -> None:
        """Let the others wait for this rank no longer."""
        self._is_interrupted = True
        if self._second is not None:
            self._second.interrupt()

    def _wait_for_all_parameters(self) -> None:
        """Also of a rank that only sends: a kernel of its group that waits on the GPU for a newcomer, who waits for its
        parameters, could keep back what this rank must do to send them."""
        if not self._has_parameters.is_set():
            with self._waiting():
                self._has_parameters.wait()
        self._raise_failure()

    def _hold_all(self) -> None:
        kept = [
            moments.part(rest)
            for moments in self._old
            for rest in difference([moments.elements], [each.elements for each in self._new])
        ]
        self._is_over = True
        self._state.optimizer.hold([*self._new, *kept])
        self._state.progress.stand(self._agreement.common)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._group.close()  # its peers fail now, and not at their deadline
            raise self._failure

    def _run_beside(self, second: Group, ready: torch.cuda.Event | None) -> None:
        try:
            if ready is None:
                self._carry(second)
            else:
                stream = torch.cuda.Stream(self._state.flat.vector.device)  # type: ignore[no-untyped-call]
                stream.wait_event(ready)
                with torch.cuda.stream(stream):
                    self._carry(second)
        except BaseException as failure:  # raised where the step needs what was to come
            self._failure = failure
        finally:
            self._has_parameters.set()
            second.close()

    def _carry(self, group: Group) -> None:
        """Parameters first."""
        state, agreement = self._state, self._agreement
        _carry_parameters(group, agreement.parameters, state.flat.vector)
        if state.flat_reference is not None:
            _carry_parameters(group, agreement.reference, state.flat_reference.vector)
        _await_device(state.flat.vector.device)
        self._has_parameters.set()
        self._carry_moments(group)
        _await_device(state.flat.vector.device)
        self._is_complete = not self._is_interrupted

    def _carry_moments(self, group: Group) -> None:
        for name in ("first", "second"):

            def read(elements: Interval, name: str = name) -> Tensor:
                return joined(self._old, elements, name)

            def write(elements: Interval, values: Tensor, name: str = name) -> None:
                for moments in self._new:
                    common = intersection(moments.elements, elements)
                    if common.num_elements:
                        part = values[common.first - elements.first : common.end - elements.first]
                        getattr(moments.part(common), name).copy_(part)

            carry_out(group, self._agreement.moments, read, write, device=self._state.flat.vector.device)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self.is_awaited = True
        try:
            yield
        finally:
            self.is_awaited = False


def _carry_parameters(group: Group, transfers: Sequence[Transfer], vector: Tensor) -> None:
    """Of a vector of which every rank has room for the whole."""

    def write(elements: Interval, values: Tensor) -> None:
        vector[elements.elements] = values

    carry_out(group, transfers, lambda elements: vector[elements.elements], write, device=vector.device)


def _await_device(device: torch.device) -> None:
    """Until the kernels of this thread's stream are done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
