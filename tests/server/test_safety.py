"""Keys on every route, foreign hosts and pages, and what the page may do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from deepzig.engine.llm import LLM
from deepzig.engine.loading import load
from deepzig.errors import ServerError
from deepzig.server.app import Routes
from deepzig.server.settings import ServerSettings
from tests.server.conftest import RunningServer, serving, wait_for

KEYS = ("first-key-of-the-tests", "second-key-of-the-tests")
PUBLIC = {"/", "/health", "/livez"}


@pytest.fixture(scope="module")
def locked(stories: LLM) -> Iterator[RunningServer]:
    with serving(stories, api_keys=KEYS) as running:
        yield running


def all_routes(server: RunningServer) -> list[tuple[str, str]]:
    """(method, path) of everything that the server answers, taken from its router: a new route cannot be missed."""
    found = []
    for route in Routes(server.service).listed():
        assert isinstance(route, Route | Mount | WebSocketRoute)
        if isinstance(route, Route):
            found += [(method, route.path.replace("{id:path}", "stories")) for method in sorted(route.methods or ())]
    return found


# ---- keys, hosts, origins


def test_every_route_but_the_public_ones_needs_a_key(locked: RunningServer) -> None:
    routes = all_routes(locked)
    assert {"/v1/models", "/metrics", "/status", "/tokenize", "/openapi.json"} <= {path for _, path in routes}
    headers = {"content-type": "application/json"}
    good = [
        {"authorization": f"Bearer {KEYS[0]}"},
        {"authorization": f"bearer {KEYS[1]}"},
        {"X-Api-Key": KEYS[1]},
    ]
    bad: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": KEYS[0]},
        {"authorization": f"Basic {KEYS[0]}"},
        {"x-api-key": f"{KEYS[0]} "[:-2]},
    ]
    with locked.http() as http:
        for method, path in routes:
            for key in bad:
                status = http.request(method, path, headers=headers | key, content=b"{}").status_code
                assert (status == 401) is (path not in PUBLIC), (method, path, key, status)
            for key in good:
                assert http.request(method, path, headers=headers | key, content=b"{}").status_code != 401
        assert http.get("/v1/no-such-route").status_code == 401, "nor does it tell which routes there are"


def test_openai_client_without_the_key(locked: RunningServer) -> None:
    with locked.openai(api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    with locked.openai(api_key=KEYS[0]) as client:
        assert client.models.list().data


def test_prefixes_are_not_shared_between_keys(locked: RunningServer) -> None:
    prompt = "A fox and a hen sat by the river all day long. " * 8
    cached = []
    for key in (KEYS[0], KEYS[1], KEYS[0]):
        with locked.openai(api_key=key) as client:
            usage = client.completions.create(model="", prompt=prompt, max_tokens=1).usage
            assert usage is not None
            cached.append(usage.prompt_cache_hit_tokens)
    assert max(cached[:2]) <= 1 < cached[2]  # 1: the token that begins all texts, from requests of other tests


def test_a_server_finds_the_prompts_of_one_before_it(tmp_path: Path) -> None:
    """Those without a key and a salt: others are not for everybody."""
    cached = []
    for salt in (None, "salt"):
        with load("stories", prompt_cache=tmp_path) as llm, serving(llm) as running, running.http() as http:
            body = {"prompt": "A fox and a hen sat by the river. " * 8, "max_tokens": 1}
            for given in (body, body | {"cache_salt": salt}):
                usage = http.post("/v1/completions", json=given).json()["usage"]
                cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == cached[3] == 0 and cached[2] > 64


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8000"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost:1234"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "a b"}, 403),
        ({"host": "["}, 403),
        ({"host": "]["}, 403),
        ({"host": "[abc]"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1", "host": "localhost:2"}, 403),
        ({"origin": "http://localhost:2", "host": "localhost:2"}, 200),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics"])
def test_foreign_hosts_and_pages_are_refused(
    server: RunningServer, headers: dict[str, str], status: int, path: str
) -> None:
    with server.http() as http:
        reply = http.get(path, headers=headers)
    assert reply.status_code == status
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_what_a_page_may_post_without_asking_is_refused(server: RunningServer, kind: str | None) -> None:
    with server.http() as http:
        headers = {} if kind is None else {"content-type": kind}
        assert http.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers).status_code == 415
        zipped = {"content-type": "application/json", "content-encoding": "gzip"}
        assert http.post("/v1/completions", content=b"\x1f\x8b", headers=zipped).status_code == 415


def test_admitted_origins_and_hosts(stories: LLM) -> None:
    origin = "https://chat.example"
    admitted = {"allowed_origins": (f"{origin}:443",), "allowed_hosts": ("Box.example", "[2001:DB8::0:5]")}
    with serving(stories, **admitted) as running, running.http() as http:
        reply = http.get("/v1/models", headers={"origin": origin, "host": "box.example"})
        assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == origin
        assert http.get("/v1/models", headers={"host": "[2001:db8::5]:8000"}).status_code == 200
        preflight = http.options("/v1/chat/completions", headers={"origin": origin})
        assert preflight.status_code == 204 and "authorization" in preflight.headers["access-control-allow-headers"]
        for wanted, is_allowed in (("authorization, content-type, x-stainless-os", True), ("x-a<script>", False)):
            asks = {"origin": origin, "access-control-request-headers": wanted}
            preflight = http.options("/v1/chat/completions", headers=asks)
            assert (preflight.headers["access-control-allow-headers"] == wanted) is is_allowed
            assert preflight.headers["vary"] == "access-control-request-headers, origin"
        refused = http.get("/v1/models/other", headers={"origin": origin})
        assert {"x-request-id", "x-should-retry"} <= refused.headers.keys()
        assert refused.headers["access-control-expose-headers"] == "x-request-id, retry-after, x-should-retry"
        assert http.get("/v1/models", headers={"origin": "https://other.example"}).status_code == 403


@pytest.mark.parametrize("name", ["http://llm.example", "llm.example:443", "llm.example/v1", "[::1]:80", "*", ""])
def test_a_host_that_no_client_can_name_is_refused(name: str) -> None:
    with pytest.raises(ServerError, match="give the name alone"):
        ServerSettings(allowed_hosts=(name,))


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://Chat.Example", "https://chat.example"),
        ("https://chat.example:443", "https://chat.example"),
        ("http://chat.example:80", "http://chat.example"),
        ("http://chat.example:443", "http://chat.example:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("tauri://localhost", "tauri://localhost"),
        ("null", "null"),
    ],
)
def test_origins_are_compared_as_browsers_and_apps_send_them(given: str, sent: str) -> None:
    assert ServerSettings(allowed_origins=(given,)).allowed_origins == (sent,)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "box.example"])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ServerError, match="--insecure"):
        ServerSettings(host=host)
    assert not ServerSettings(host=host, api_keys=KEYS).is_loopback
    assert ServerSettings(host=host, insecure=True).insecure


@pytest.mark.parametrize(
    "settings",
    [
        {"api_keys": ("short",)}, {"api_keys": ("schlüssel-schlüssel",)}, {"allowed_origins": ("chat.example",)},
        {"allowed_origins": ("http://[",)}, {"allowed_origins": ("*",)}, {"allowed_origins": ("https://chat.example/",)},
        {"allowed_origins": ("https://chat.example:",)}, {"allowed_origins": ("https://bücher.example",)},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant(settings: dict[str, Any]) -> None:
    with pytest.raises(ServerError):
        ServerSettings(**settings)


def test_keys_are_not_shown() -> None:
    assert KEYS[0] not in repr(ServerSettings(api_keys=KEYS))


def test_log_lines_cannot_be_forged(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "deepzig.server")
    with server.http() as http:
        http.get("/v1/models/x%0aPOST /forged 200%1b[31m")
    wait_for(lambda: any("forged" in record.getMessage() for record in caplog.records))
    assert all("\n" not in record.getMessage() and "\x1b" not in record.getMessage() for record in caplog.records)


def test_the_page_may_do_little(server: RunningServer) -> None:
    with server.http() as http:
        reply = http.get("/")
    if reply.status_code == 200:
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
