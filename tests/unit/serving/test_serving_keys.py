"""Keys with names, roles and limits; what they have had; the audit log."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
from logging.handlers import RotatingFileHandler
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import FakePool, fake_context
from starlette.testclient import TestClient

from rlserve.errors import UserError
from rlserve.serving.accounting import Accounts, Usage, read_accounts
from rlserve.serving.admin.door import read_admin_keys
from rlserve.serving.admin.key_files import KeyFiles, ReadKeys
from rlserve.serving.audit import open_audit_log
from rlserve.serving.config import (
    AccessConfig,
    AccountingConfig,
    AdminConfig,
    AuditConfig,
    ServeConfig,
    ServedModelConfig,
)
from rlserve.serving.front.app import create_app
from rlserve.serving.front.gate import Gate
from rlserve.serving.keys import KeyOwner, Keys, Role, read_keys
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.rate_limits import AllLimits, KeyLimits, TokenBucket
from rlserve.serving.records import Records
from rlserve.serving.write_failures import WriteFailures

SECRET = "a-secret-of-ci"
PRICED = AccountingConfig(prompt_price=2.0, cached_price=1.0, generated_price=10.0)


def keys_of(text: str) -> Keys:
    return read_keys(AccessConfig(), {"RLSERVE_API_KEYS": text})


def client_of(line: str, *, pool: FakePool | None = None, records: Records | None = None) -> TestClient:
    context = fake_context(keys=keys_of(f"{SECRET} {line}"), pool=pool, records=records)
    context.metrics.register(context.records.accounts)
    gate = Gate(
        create_app(context),
        context.keys,
        context.metrics,
        checks_host=False,
        records=context.records,
    )
    return TestClient(gate, headers={"Authorization": f"Bearer {SECRET}"})


def ask(client: TestClient, **asked: object) -> dict[str, object]:
    answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 5, **asked})
    assert answer.status_code == 200, answer.text
    return {} if asked.get("stream") else answer.json()


def test_what_is_said_of_a_key() -> None:
    line = f"{SECRET} name=ci roles=user+admin priority=-3 requests_per_minute=60 tokens_per_minute=1000"
    assert keys_of(line).find(SECRET) == KeyOwner(
        name="ci",
        roles=frozenset({Role.USER, Role.ADMIN}),
        priority=-3,
        requests_per_minute=60,
        tokens_per_minute=1000,
    )
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    hashed = keys_of(f"plain-key-1, sha256:{digest} name=hashed")
    assert [owner.name for owner in hashed.owners] == ["key-1", "hashed"]
    assert hashed.find(SECRET) == KeyOwner(name="hashed")
    assert hashed.find("plain-key-1") == KeyOwner(name="key-1")
    assert hashed.find(f"{SECRET} name=hashed") is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("nam=ci", "nam"),
        ("name=", "name="),
        ("name=a/b", "letters, digits"),
        ("roles=user+root", "user\\+metrics\\+admin"),
        ("roles=", "roles="),
        ("requests_per_minute=0", "at least 1"),
        ("tokens_per_minute=many", "whole number"),
        ("name=ci, other-key-1 name=ci, other-key-2 name=ci", "more than 2 API keys have the name 'ci'"),
        ("name=ci priority=1, other-key-1 name=ci priority=2", "different priority"),
    ],
)
def test_what_cannot_be_said_of_a_key(said: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        keys_of(f"{SECRET} {said}")
    assert SECRET not in str(caught.value)


def test_keys_with_the_role_open_the_admin_listener() -> None:
    others = keys_of(f"{SECRET} name=oncall roles=user+admin, plain-key-1")
    keys = read_admin_keys(AdminConfig(port=0), others, {})
    assert keys.find(SECRET) is not None
    assert keys.find("plain-key-1") is None


@pytest.mark.parametrize(
    ("roles", "metrics", "models"), [("user", 403, 200), ("metrics", 200, 403), ("user+metrics", 200, 200)]
)
def test_roles(roles: str, metrics: int, models: int) -> None:
    client = client_of(f"roles={roles}")
    assert client.get("/metrics").status_code == metrics
    assert client.head("/metrics").status_code == metrics
    assert client.get("/v1/models").status_code == models
    assert client.get("/health").status_code == 200


def test_priority_has_a_ceiling() -> None:
    pool = FakePool()
    client = client_of("priority=5", pool=pool)
    for priority in (-10, 5, 9):
        ask(client, priority=priority)
    assert [request.priority for request in pool.requests] == [5, 5, 9]


@given(
    per_minute=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 90), st.integers(1, 1000)), max_size=40),
)
def test_a_bucket_lets_in_a_minutes_worth_and_what_flows_in(per_minute: int, steps: list[tuple[float, int]]) -> None:
    bucket, now_s = TokenBucket(per_minute, 0.0), 0.0
    taken: list[tuple[float, int]] = []
    for passed_s, wanted in steps:
        now_s += passed_s
        amount = min(wanted, per_minute)
        wait_s = bucket.take(amount, now_s)
        if wait_s == 0:
            taken.append((now_s, amount))
        else:
            assert bucket.remaining(now_s) < amount
            assert 0 < wait_s <= 60.001
            assert bucket.take(amount, now_s + wait_s) == 0, "what it says is long enough"
            now_s += wait_s
            taken.append((now_s, amount))
        assert 0 <= bucket.remaining(now_s) <= per_minute
    for first in range(len(taken)):
        total = 0
        for time_s, amount in taken[first:]:
            total += amount
            flowed_in = (time_s - taken[first][0]) / 60 * per_minute
            assert total <= per_minute + flowed_in + 1e-6 * per_minute


@given(per_minute=st.integers(1, 100), amount=st.integers(1, 1000), used=st.integers(0, 1000))
def test_what_is_given_back_can_be_taken_again(per_minute: int, amount: int, used: int) -> None:
    bucket, used = TokenBucket(per_minute, 0.0), min(used, amount)
    assert bucket.take(amount, 0.0) == 0, "a full bucket lets anything in"
    bucket.give_back(amount - used, 0.0)
    assert bucket.remaining(0.0) == max(per_minute - used, 0)
    assert bucket.full_in_s(0.0) == pytest.approx(used / per_minute * 60)
    bucket.give_back(10**6, 0.0)
    assert bucket.remaining(0.0) == per_minute


def test_limits_say_when_to_come_again() -> None:
    limits = KeyLimits(KeyOwner(name="ci", requests_per_minute=2), 0.0)
    limits.take_request(0.0)
    limits.take_request(0.0)
    with pytest.raises(ApiError, match="the key ci may have 2 requests a minute") as caught:
        limits.take_request(0.0)
    assert caught.value.headers == {"Retry-After": "31"}
    assert limits.headers(0.0) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60.000s",
    }
    limits.take_request(31.0)


def test_too_many_requests_are_refused() -> None:
    client = client_of("requests_per_minute=2")
    assert client.get("/v1/models").headers["x-ratelimit-remaining-requests"] == "2", "only POSTs count"
    ask(client)
    ask(client)
    refused = client.post("/v1/completions", json={"prompt": "abc"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "RateLimitError")
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["x-ratelimit-limit-requests"] == "2"


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_were_not_used_are_given_back(stream: bool) -> None:
    """Of 80 tokens, an answer with 3 of a prompt and 5 of text that might have had 70 takes 8."""
    client = client_of("tokens_per_minute=80")
    ask(client, max_tokens=70, stream=stream)
    answer = client.get("/v1/models")
    assert 72 <= int(answer.headers["x-ratelimit-remaining-tokens"]) < 80
    ask(client, max_tokens=60, stream=stream)
    refused = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 90})
    assert refused.status_code == 429
    assert "tokens a minute" in refused.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_key_has_had_is_counted_by_its_name(stream: bool) -> None:
    records = Records(accounts=Accounts(PRICED, {"ci": Usage(num_requests=1, num_prompt_tokens=1)}), audit=None)
    client = client_of("name=ci", records=records)
    ask(client, stream=stream)
    usage = records.accounts.usage("ci")
    assert usage == Usage(num_requests=2, num_prompt_tokens=4, num_cached_tokens=1, num_generated_tokens=5)
    assert records.accounts.cost(usage) == pytest.approx((3 * 2.0 + 1 * 1.0 + 5 * 10.0) / 1e6)
    metrics = client.get("/metrics").text
    assert 'rlserve:key_tokens_total{key="ci",kind="generated"} 5.0' in metrics
    assert 'rlserve:key_cost_total{key="ci"}' in metrics
    assert SECRET not in metrics


def test_an_owner_may_have_an_old_key_and_a_new_one() -> None:
    keys = keys_of("old-secret name=ci, new-secret name=ci requests_per_minute=2, other-secret")
    owner = KeyOwner(name="ci", requests_per_minute=2)
    assert keys.find("old-secret") == keys.find("new-secret") == owner
    assert keys.owners == (owner, KeyOwner(name="key-3"))
    limits = AllLimits()
    first = limits.of(owner, 0.0)
    assert first is not None
    first.take_request(0.0)
    assert limits.of(owner, 1.0) is first, "both keys draw on one minute"
    assert limits.of(KeyOwner(name="ci", requests_per_minute=3), 1.0) is not first
    assert limits.of(KeyOwner(name="key-3"), 1.0) is None


def test_keys_are_read_anew_and_bad_ones_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("old-secret name=ci\n")
    config = ServeConfig(
        model=ServedModelConfig(path="m"),
        access=AccessConfig(keys_file=str(path)),
        admin=AdminConfig(port=0),
    )
    key_files = KeyFiles(config, {"RLSERVE_ADMIN_KEYS": "secret-of-admins"})
    clients, operators = key_files.clients, key_files.operators
    path.write_text("old-secret name=ci\nnew-secret name=ci roles=user+admin\n")
    assert key_files.reload() == ReadKeys(num_keys=2, num_added=3, num_removed=0)
    assert clients.find("new-secret") == clients.find("old-secret")
    assert operators.find("new-secret")
    for bad in ("short roles=nobody\n", ""):
        path.write_text(bad)
        with pytest.raises(UserError):
            key_files.reload()
        assert clients.find("old-secret")
    path.write_text("new-secret name=ci\n")
    assert key_files.reload() == ReadKeys(num_keys=1, num_added=0, num_removed=3)
    assert clients.find("old-secret") is None
    assert operators.find("new-secret") is None
    assert operators.find("secret-of-admins")


def test_usage_that_cannot_be_written_is_told_once_counted_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failures = WriteFailures()
    config = AccountingConfig(usage_file=str(tmp_path / "folder" / "usage.json"))
    accounts = read_accounts(config, failures)
    accounts.add("ci", Usage(num_requests=1))
    for _ in range(3):
        accounts.save()
    assert num_failures(failures) == {"usage": 3, "audit": 0}
    (tmp_path / "folder").mkdir()
    accounts.save()
    assert read_accounts(config).usage("ci") == Usage(num_requests=1)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def num_failures(failures: WriteFailures) -> dict[str, float]:
    (metric,) = failures.collect()
    return {sample.labels["record"]: sample.value for sample in metric.samples}


def test_saving_goes_on_after_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlserve.serving.records._SAVE_INTERVAL_S", 0.001)
    path = tmp_path / "folder" / "usage.json"
    accounts = read_accounts(AccountingConfig(usage_file=str(path)), failures := WriteFailures())

    async def scenario() -> None:
        async with asyncio.timeout(30), Records(accounts=accounts, audit=None, failures=failures).kept():
            accounts.add("ci", Usage(num_requests=1))
            while not num_failures(failures)["usage"]:
                await asyncio.sleep(0)
            path.parent.mkdir()
            while not path.exists():
                await asyncio.sleep(0)

    asyncio.run(scenario())
    assert json.loads(path.read_text())["ci"]["num_requests"] == 1


def test_an_audit_log_on_a_full_disk_is_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, failures, num_full = tmp_path / "audit.jsonl", WriteFailures(), 3

    def flush(self: RotatingFileHandler) -> None:
        nonlocal num_full
        num_full -= 1
        if num_full >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RotatingFileHandler, "flush", flush)
    with open_audit_log(AuditConfig(path=str(path)), failures) as log:
        assert log is not None
        for number in range(5):
            log.write({"number": number})
    assert num_failures(failures) == {"usage": 0, "audit": 3}
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert capsys.readouterr().err == ""


def test_accounts_survive_a_restart(tmp_path: Path) -> None:
    config = AccountingConfig(usage_file=str(tmp_path / "usage.json"))
    accounts = read_accounts(config)
    accounts.save()
    assert not (tmp_path / "usage.json").exists(), "there was nothing to write"
    accounts.add("ci", Usage(num_requests=1, num_prompt_tokens=3, num_generated_tokens=5))
    news = accounts.take_news()
    assert news is not None
    accounts.add("of a request that ends meanwhile", Usage(num_requests=1))
    accounts.write(news)
    assert list(json.loads((tmp_path / "usage.json").read_text())) == ["ci"]
    accounts.save()
    assert read_accounts(config).usage("of a request that ends meanwhile") == Usage(num_requests=1)
    again = read_accounts(config)
    again.add("ci", Usage(num_requests=1))
    assert again.usage("ci") == Usage(num_requests=2, num_prompt_tokens=3, num_generated_tokens=5)
    assert "rlserve:key_cost" not in [metric.name for metric in again.collect()], "there are no prices"
    (tmp_path / "usage.json").write_text('{"ci": {"wrong": 1}}')
    with pytest.raises(UserError, match=r"accounting\.usage_file"):
        read_accounts(config)


@pytest.mark.parametrize("text", [False, True])
def test_the_audit_log_has_no_text_unless_it_is_asked_for(tmp_path: Path, text: bool) -> None:
    path = tmp_path / "logs" / "audit.jsonl"
    with open_audit_log(AuditConfig(path=str(path), text=text)) as log:
        records = Records(accounts=Accounts(AccountingConfig(), {}), audit=log)
        client = client_of("name=ci", records=records)
        ask(client, prompt="words of mine")
        client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    assert path.stat().st_mode & 0o077 == 0
    content = path.read_text()
    assert SECRET not in content
    assert ("words of mine" in content) == text
    first, second = map(json.loads, content.splitlines())
    assert {name: first[name] for name in ("key", "method", "route", "status", "num_generated_tokens")} == {
        "key": "ci",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "num_generated_tokens": 5,
    }
    assert first["num_prompt_tokens"] == len("words of mine")
    assert (second["key"], second["status"], second["route"]) == (None, 401, None)


def test_the_audit_log_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with open_audit_log(AuditConfig(path=str(path), max_bytes=1024, num_kept=2)) as log:
        assert log is not None
        for number in range(100):
            log.write({"number": number})
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(each.stat().st_size <= 1024 for each in tmp_path.iterdir())
    lines = [json.loads(line) for name in reversed(names) for line in (tmp_path / name).read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(100 - len(lines), 100))


def test_an_audit_log_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"audit\.path"),
        open_audit_log(AuditConfig(path=str(tmp_path / "audit" / ".."))),
    ):
        raise AssertionError("it was opened")
