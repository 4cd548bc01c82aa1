"""/openapi.json fits the server: schemathesis makes requests from it, and no reply is a 5xx or undocumented."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepzig.engine.loading import load
from tests.server.conftest import RunningServer, serving
from tests.talkers import TEMPLATES, make_talker

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A model with tools and thoughts and a context of 64 tokens, so that no answer is long."""
    directory = make_talker(tmp_path_factory.mktemp("small"), TEMPLATES["V3.1"])
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    with load(directory) as llm, serving(llm) as running:
        yield running


def test_description_names_every_route(small: RunningServer) -> None:
    with small.http() as http:
        document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    documented = set(document["paths"])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/metrics"} <= documented
    with small.http() as http:
        for path, operations in document["paths"].items():
            for method in operations:
                reply = http.request(method, path.replace("{id}", "nothing"), json={} if method == "post" else None)
                assert str(reply.status_code) in operations[method]["responses"], (method, path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_made_up_requests(small: RunningServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{small.url}/openapi.json", "--checks", CHECKS]
    options = ["--generation-deterministic", "--no-color", "--request-timeout", "60", "--continue-on-failure"]
    amount = ["--phases", "coverage,fuzzing", "--max-examples", "60"]
    done = subprocess.run([*command, *options, *amount], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-20000:]
