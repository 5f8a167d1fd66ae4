"""Who is let in: keys, hosts, and that no route is without a key."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from serving_fakes import KEY, FakeOperations, fake_context, fake_key_files
from starlette.testclient import TestClient

from rlserve.errors import ConfigurationError, UserError
from rlserve.serving.admin.door import read_admin_keys
from rlserve.serving.admin.key_files import KeyFiles
from rlserve.serving.config import AccessConfig, AdminConfig, ServeConfig, ServedModelConfig
from rlserve.serving.front.app import ADMIN_ROUTERS, ROUTERS, create_admin_app, create_app
from rlserve.serving.front.gate import OPEN_PATHS, Gate
from rlserve.serving.front.root_path import RootPath
from rlserve.serving.keys import Keys, Role, check_access, read_keys
from rlserve.serving.listeners import address_of, listening_on
from rlserve.serving.server import check_tls

OTHER_KEY = "another-key-1"
NOBODY = Keys(())


@pytest.fixture
def client() -> Iterator[TestClient]:
    context = fake_context()
    gate = Gate(create_app(context), context.keys, context.metrics, checks_host=False)
    with TestClient(gate, raise_server_exceptions=False) as made:
        yield made


def routes() -> list[tuple[str, str]]:
    """Method and path of every route, the description of the API among them."""
    app = create_app(fake_context())
    known = [route for router in (app.router, *ROUTERS) for route in router.routes if hasattr(route, "path")]
    found = {(method, route.path) for route in known for method in route.methods}
    assert {path.partition("{")[0] for path in app.openapi()["paths"]} <= {path.partition("{")[0] for _, path in found}
    assert {("POST", "/v1/completions"), ("GET", "/openapi.json"), ("HEAD", "/metrics")} <= found
    return sorted((method, path.replace("{name:path}", "fake")) for method, path in found)


@pytest.mark.parametrize(("method", "path"), routes())
def test_every_route_demands_a_key(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code == 401) == (path not in OPEN_PATHS)
    for wrong in ({"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"X-Api-Key": "wrong"}):
        assert (client.request(method, path, headers=wrong).status_code == 401) == (path not in OPEN_PATHS)
    assert client.request(method, path, headers={"Authorization": f"Bearer {KEY}"}).status_code != 401


def admin_routes() -> list[tuple[str, str]]:
    """Method and path of every route of the admin listener."""
    app = create_admin_app(fake_context(), FakeOperations(), fake_key_files())
    known = [route for router in (app.router, *ADMIN_ROUTERS) for route in router.routes if hasattr(route, "path")]
    found = {(method, route.path) for route in known for method in route.methods}
    assert {("POST", "/admin/weights"), ("GET", "/openapi.json")} <= found
    return sorted(found)


@pytest.mark.parametrize(("method", "path"), admin_routes())
def test_every_route_of_operators_demands_a_key_of_theirs(client: TestClient, method: str, path: str) -> None:
    keys = read_admin_keys(AdminConfig(port=0), NOBODY, {"RLSERVE_ADMIN_KEYS": OTHER_KEY})
    context = fake_context()
    app = create_admin_app(context, FakeOperations(), fake_key_files())
    gate = Gate(app, keys, context.metrics, checks_host=False, open_paths=frozenset(), role=Role.ADMIN)
    with TestClient(gate, raise_server_exceptions=False) as operator:
        assert operator.request(method, path).status_code == 401
        assert operator.request(method, path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 401
        assert operator.request(method, path, headers={"Authorization": f"Bearer {OTHER_KEY}"}).status_code != 401
    if path.startswith("/admin"):
        assert client.request(method, path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 404


def test_operators_need_a_key_on_every_address(tmp_path: Path) -> None:
    assert len(read_admin_keys(AdminConfig(), NOBODY, {})) == 0
    with pytest.raises(UserError, match=r"admin\.keys_file"):
        read_admin_keys(AdminConfig(port=0), NOBODY, {"RLSERVE_API_KEYS": OTHER_KEY})
    assert read_admin_keys(AdminConfig(port=0), NOBODY, {"RLSERVE_ADMIN_KEYS": OTHER_KEY}).find(OTHER_KEY)


def test_the_guide_names_every_route() -> None:
    guide = (Path(__file__).parents[3] / "docs/serving.md").read_text(encoding="utf-8")
    paths = {path.removesuffix("/fake") for _, path in [*routes(), *admin_routes()]} - {"/page.css", "/page.js"}
    assert [path for path in sorted(paths) if f"{path}`" not in guide] == []


def test_a_refusal_says_how(client: TestClient) -> None:
    answer = client.get("/v1/models")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "AuthenticationError"
    assert client.get("/v1/models", headers={"X-Api-Key": KEY}).status_code == 200
    assert client.get("/health?generate=1").status_code == 401


def test_each_answer_has_the_name_of_its_request(client: TestClient) -> None:
    assert client.get("/version", headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
    made = client.get("/version", headers={"X-Request-Id": "x" * 500}).headers["X-Request-Id"]
    assert len(made) == 32


def test_without_keys_only_this_machine_is_answered() -> None:
    context = fake_context(keys=Keys(()))
    gate = Gate(create_app(context), context.keys, context.metrics, checks_host=True)
    client = TestClient(gate)
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "localhost.evil.example", ""):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 403


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"hashed-key-1").hexdigest()
    file.write_text(f"# of the team\nkey-of-file\n\nsha256:{digest}\n")
    keys = read_keys(AccessConfig(keys_file=str(file)), {"RLSERVE_API_KEYS": " key-of-environment ,"})
    assert len(keys) == 3
    assert all(map(keys.find, ("key-of-file", "key-of-environment", "hashed-key-1")))
    assert not any(map(keys.find, ("", "key", digest, f"sha256:{digest}", "# of the team")))
    assert "key-of-file" not in repr(vars(keys))


def test_keys_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 8"):
        read_keys(AccessConfig(), {"RLSERVE_API_KEYS": "short"})
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(AccessConfig(keys_file=str(tmp_path / "none")), {})


def test_short_keys_are_for_this_machine_alone(caplog: pytest.LogCaptureFixture) -> None:
    environment = {"RLSERVE_API_KEYS": "zzz9"}
    for local in ({"host": "localhost"}, {"host": "0.0.0.0", "unix_socket": "/tmp/socket"}):
        config = ServeConfig(model=ServedModelConfig(path="m"), **local)  # type: ignore[arg-type]
        keys = KeyFiles(config, environment).clients
        assert keys.find("zzz9") is not None
        assert keys.has_short
    assert "can be guessed" in caplog.text
    assert "zzz9" not in caplog.text
    with pytest.raises(UserError, match="at least 8"):
        KeyFiles(ServeConfig(model=ServedModelConfig(path="m"), host="0.0.0.0"), environment)
    with pytest.raises(UserError, match="role admin"):
        read_keys(AccessConfig(), {"RLSERVE_API_KEYS": "zzz9 roles=user+admin"}, may_be_short=True)
    with pytest.raises(UserError, match="at least 8"):
        read_admin_keys(AdminConfig(port=0), NOBODY, {"RLSERVE_ADMIN_KEYS": "zzz9"})


def test_with_short_keys_a_name_of_elsewhere_is_not_answered() -> None:
    keys = read_keys(AccessConfig(), {"RLSERVE_API_KEYS": "zzz9"}, may_be_short=True)
    context = fake_context(keys=keys)
    client = TestClient(Gate(create_app(context), context.keys, context.metrics, checks_host=False))
    headers = {"Authorization": "Bearer zzz9"}
    assert client.get("/v1/models", headers={**headers, "Host": "localhost"}).status_code == 200
    assert client.get("/v1/models", headers={**headers, "Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("path", ["/v1/models", "/llm/v1/models"])
def test_paths_are_the_same_below_the_root_path(path: str) -> None:
    context = fake_context()
    gate = Gate(create_app(context), context.keys, context.metrics, checks_host=False)
    client = TestClient(RootPath(gate, "/llm"))
    assert client.get(path).status_code == 401
    assert client.get(path, headers={"X-Api-Key": KEY}).status_code == 200
    assert client.get(path.replace("v1/models", "health")).status_code == 200, "open there too"
    for wrong in ("/llmx/v1/models", "/llm/llm/v1/models", "/x/llm/v1/models", "/llm"):
        assert client.get(wrong, headers={"X-Api-Key": KEY}).status_code == 404
    assert 'handler="/v1/models"' in client.get("/llm/metrics", headers={"X-Api-Key": KEY}).text


@pytest.mark.parametrize("wrong", ["llm", "/llm/", "/"])
def test_a_root_path_that_is_none(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="root_path"):
        ServeConfig(model=ServedModelConfig(path="m"), root_path=wrong)


def test_a_unix_socket_is_for_its_user_alone_and_gives_way_when_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    config = ServeConfig(model=ServedModelConfig(path="m"), unix_socket=str(path))
    with listening_on(config) as listener:
        assert path.stat().st_mode & 0o777 == 0o600
        assert address_of(config, listener) == f"unix:{path}"
        with pytest.raises(UserError, match="unix_socket="), listening_on(config):
            pass
    assert not path.exists()
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as left:
        left.bind(str(path))
    with listening_on(config):
        pass
    path.write_text("a file")
    with pytest.raises(UserError, match="unix_socket="), listening_on(config):
        pass
    assert path.read_text() == "a file"


def test_others_are_not_listened_to_without_keys() -> None:
    open_config = ServeConfig(model=ServedModelConfig(path="m"), host="0.0.0.0")
    with pytest.raises(UserError, match=r"access\.keys_file"):
        check_access(open_config.host, open_config.access, Keys(()))
    check_access(open_config.host, open_config.access, Keys((b"0" * 32,)))
    check_access("localhost", AccessConfig(), Keys(()))
    insecure = ServeConfig(model=ServedModelConfig(path="m"), host="0.0.0.0", access=AccessConfig(insecure=True))
    check_access(insecure.host, insecure.access, Keys(()))
    with pytest.raises(ConfigurationError, match="tls_certificate"):
        AccessConfig(tls_key="key.pem")


def test_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.write_text("no certificate")
    check_tls(AccessConfig())
    for path in (file, tmp_path / "none.pem"):
        with pytest.raises(UserError, match=r"access\.tls_certificate"):
            check_tls(AccessConfig(tls_certificate=str(path), tls_key=str(path)))


def test_no_text_of_a_request_is_logged_or_counted(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    secret = "words-that-stay-here"
    with caplog.at_level("DEBUG", logger="rlserve"):
        for body in ({"prompt": secret, "wrong": 1}, {"prompt": [secret]}, {"prompt": {secret: 1}}, {secret: secret}):
            client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
        client.get(f"/{secret}?{secret}", headers={"Authorization": f"Bearer {KEY}"})
    assert caplog.records
    assert secret not in caplog.text
    metrics = client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    assert "http_requests_total" in metrics
    assert secret not in metrics


def test_an_unknown_method_makes_no_label(client: TestClient) -> None:
    client.request("BREW", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    assert "BREW" not in client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text


def test_bodies_that_do_not_arrive_are_given_up(client: TestClient) -> None:
    context = fake_context(body_timeout_s=0.05)
    app = create_app(context)
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(3600)
        return {}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408
