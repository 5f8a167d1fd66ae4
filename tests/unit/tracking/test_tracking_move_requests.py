"""Requests of users to a running run, from both sides of the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlserve.errors import UserError
from rlserve.tracking.move_requests import GangStatus, MoveAnswer, MoveRequest, MoveRequests, ask
from rlserve.tracking.owner import owned
from rlserve.tracking.run_folder import RunFolder

ANSWER = MoveAnswer(
    outcome="done", message="moved", gangs=(GangStatus(id="cpu/0", state="train", num_slots=1, type="cpu"),)
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """Of a run that goes on."""
    found = RunFolder.create(tmp_path, "run")
    with owned(found.path):
        yield found


def opened(folder: RunFolder) -> MoveRequests:
    requests = MoveRequests(folder.requests)
    requests.open()
    return requests


def answering(requests: MoveRequests, seen: list[MoveRequest]) -> Callable[[float], None]:
    """What the run does while the user waits."""

    def turn(_: float) -> None:
        for request in requests.take():
            seen.append(request)
            requests.answer(request, ANSWER)

    return turn


def test_a_request_reaches_the_run_and_its_answer_the_user(folder: RunFolder) -> None:
    seen: list[MoveRequest] = []
    requests = opened(folder)
    answer = ask(folder, "move", "cpu/0", "rollout", timeout_s=60.0, sleep=answering(requests, seen))
    assert answer == ANSWER
    ((request),) = seen
    assert (request.action, request.gang_id, request.role) == ("move", "cpu/0", "rollout")
    assert list(folder.requests.iterdir()) == [], "nothing is left behind"


def test_only_the_owner_may_look_into_the_folder(folder: RunFolder) -> None:
    opened(folder)
    assert folder.requests.stat().st_mode & 0o777 == 0o700


def test_what_an_earlier_process_left_is_removed(folder: RunFolder) -> None:
    requests = opened(folder)
    (folder.requests / "old.request.json").write_text(
        json.dumps({"id": "old", "action": "move", "gang_id": "cpu/0", "role": "train"})
    )
    requests.open()
    assert requests.take() == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"id": "a"}',
        '{"id": "../a", "action": "show"}',
        '{"id": "a", "action": "delete"}',
        '{"id": "a", "action": "move", "gang_id": "cpu/0", "role": "king"}',
        '{"id": "a", "action": "move", "gang_id": null, "role": "train"}',
        '{"id": "a", "action": "show", "more": 1}',
        '{"id": "a", "action": "show"}' + " " * 5000,
    ],
)
def test_what_is_no_request_is_removed_and_not_heard(folder: RunFolder, text: str) -> None:
    requests = opened(folder)
    (folder.requests / "a.request.json").write_text(text)
    assert requests.take() == ()
    assert list(folder.requests.iterdir()) == []


def test_a_link_is_not_followed(folder: RunFolder, tmp_path: Path) -> None:
    requests = opened(folder)
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text('{"id": "a", "action": "show"}')
    (folder.requests / "a.request.json").symlink_to(elsewhere)
    assert requests.take() == ()
    assert elsewhere.exists()


def test_a_run_that_does_not_answer(folder: RunFolder) -> None:
    requests = opened(folder)
    with pytest.raises(UserError, match="did not look at the request for 0 s, and it was taken back: nothing was done"):
        ask(folder, "show", timeout_s=0.0, sleep=lambda _: None)
    assert requests.take() == ()


def test_a_run_that_is_long_at_it(folder: RunFolder) -> None:
    requests = opened(folder)
    with pytest.raises(UserError, match="is still at it after 0 s; rlserve move run says how it stands"):
        ask(folder, "show", timeout_s=0.0, sleep=lambda _: requests.take() and None)


def test_a_run_that_ends_meanwhile_or_does_not_run(folder: RunFolder) -> None:
    opened(folder)

    def end(_: float) -> None:
        (folder.path / "owner.json").unlink()

    for _ in range(2):
        with pytest.raises(UserError, match="run does not run: rlserve status run says how it stands"):
            ask(folder, "show", timeout_s=60.0, sleep=end)


def test_a_run_that_is_only_starting(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="run is only starting: ask again when its workers are up"):
        ask(folder, "show", timeout_s=60.0)
