"""Several machines by Ray: three nodes of a cluster, all on this machine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import deepzig
from deepzig import SamplingParams
from deepzig.distributed import ray_cluster
from deepzig.errors import ClusterError
from tests.distributed.threads import wait_until
from tests.test_docs_commands import ON_A_CLUSTER, run_document

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
TEXT = "Once upon a time there was a little girl who had a red ball. "
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


def test_without_a_cluster_the_command_line_says_what_to_do(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_TMPDIR"] = str(tmp_path)  # where an earlier cluster would have left its address
    words = ["generate", "Once", "--machines", "2"]
    run = subprocess.run(
        [sys.executable, "-m", "deepzig", *words], capture_output=True, text=True, timeout=120, env=environment
    )
    assert run.returncode == 5
    assert run.stderr.splitlines()[-1].startswith(
        "Error: this machine cannot join a Ray cluster (Could not find any running Ray instance); run `ray start"
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head, which is this process's machine, and two others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        running = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        for _ in range(2):
            running.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", running.address)
        yield running
        import ray

        ray.shutdown()
        running.shutdown()


@pytest.fixture
def llm(cluster: Any) -> Iterator[deepzig.LLM]:
    with deepzig.load_distributed("stories", 3) as loaded:
        yield loaded


def workers() -> list[psutil.Process]:
    """Processes of `Worker` that live."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if words and words[0].startswith("ray::Worker"):
            found.append(process)
    return found


def test_answers_are_those_of_one_machine(llm: deepzig.LLM) -> None:
    one = deepzig.load("stories")
    assert len(workers()) == 2
    for params in (GREEDY, replace(GREEDY, temperature=1.0, seed=3, n=2), replace(GREEDY, num_beams=3)):
        expected = [choice.token_ids for choice in one.generate(TEXT * 20, params).choices]
        assert [choice.token_ids for choice in llm.generate(TEXT * 20, params).choices] == expected


def test_a_worker_that_is_killed_is_replaced(llm: deepzig.LLM) -> None:
    expected = deepzig.load("stories").generate(TEXT, GREEDY).token_ids
    for victim in (0, 1):
        stream = llm.stream(TEXT, replace(GREEDY, max_tokens=900))
        next(stream)
        workers()[victim].kill()
        with pytest.raises(ClusterError, match="is lost: The actor died"):
            list(stream)
        assert llm.generate(TEXT, GREEDY).token_ids == expected
    assert len(workers()) == 2


def test_layers_move_to_a_machine_that_joins(cluster: Any, llm: deepzig.LLM) -> None:
    expected = llm.generate(TEXT, GREEDY).token_ids
    cluster.remove_node(next(iter(cluster.worker_nodes)))
    wait_until(lambda: len(workers()) == 1)
    for message in ("is lost", "the Ray cluster has too few machines, 1 besides this one"):
        with pytest.raises(ClusterError, match=message):
            llm.generate(TEXT, GREEDY)
    cluster.add_node(**NODE)
    assert llm.generate(TEXT, GREEDY).token_ids == expected


def test_a_cluster_that_is_too_small_is_refused(cluster: Any) -> None:
    with pytest.raises(ClusterError, match="the Ray cluster has too few machines, 2 besides this one; run `ray start"):
        deepzig.load_distributed("stories", 4)
    wait_until(lambda: not workers())


def test_a_cluster_of_another_version_is_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray tells the versions in lines of their own."""
    import ray

    ray.shutdown()
    with monkeypatch.context() as patched:
        patched.setattr(ray, "__version__", "9.9")
        with pytest.raises(ClusterError, match=r"cannot join .*Ray: \d.* Python: \d.* with: Ray: 9\.9 Python"):
            deepzig.load_distributed("stories", 2)


def test_workers_compute_with_the_cores_of_their_machine(cluster: Any) -> None:
    from deepzig.checkpoint.model_names import BUNDLED
    from deepzig.distributed.ray_cluster import RayCluster, RayMachine

    machine = RayMachine(RayCluster(), BUNDLED["stories"])
    facts = machine.result(machine.start("facts"))
    assert facts.n_threads == NODE["num_cpus"]


def test_errors_of_a_worker_name_its_machine(cluster: Any, tmp_path: Path) -> None:
    from deepzig.distributed.ray_cluster import RayCluster, RayMachine
    from deepzig.errors import ConfigError

    machine = RayMachine(RayCluster(), tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"^\S+ \(\d+\.\d+\.\d+\.\d+\): .*elsewhere"):
        machine.result(machine.start("facts"))


def test_a_machine_without_deepzig_is_named(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, directory: Path | None = None) -> None:
        raise ModuleNotFoundError("No module named 'deepzig'")

    absent = type("Worker", (), {"__init__": fail, "facts": fail, "__module__": "__main__"})
    fail.__module__ = "__main__"  # so that it is sent as it is, and not imported there
    monkeypatch.setattr(ray_cluster, "Worker", absent)
    with pytest.raises(ClusterError, match=r"\) cannot start a worker \(ModuleNotFoundError: No module named"):
        deepzig.load_distributed("stories", 2)


def test_the_command_line_ends_with_its_workers(cluster: Any) -> None:
    words = ["generate", TEXT, "--max-tokens", "8", "--temperature", "0", "--json", "--machines", "3"]
    run = subprocess.run([sys.executable, "-m", "deepzig", *words], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    params = replace(GREEDY, max_tokens=8)
    assert json.loads(run.stdout)["token_ids"] == deepzig.load("stories").generate(TEXT, params).token_ids
    wait_until(lambda: not workers())


def test_what_the_document_tells_to_type(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_document(ON_A_CLUSTER, tmp_path, monkeypatch)


def test_a_server_ends_gracefully(cluster: Any) -> None:
    """Ray has a handler of its own for SIGTERM."""
    words = [sys.executable, "-m", "deepzig", "serve", "--port", "0", "--machines", "3"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = []
        while not lines or not lines[-1].startswith("Serving"):
            lines.append(server.stderr.readline())
            assert lines[-1], lines
        server.send_signal(signal.SIGTERM)
        _, rest = server.communicate(timeout=60)
    assert server.returncode == 0, rest
    assert "SIGTERM" not in rest
    wait_until(lambda: not workers())
