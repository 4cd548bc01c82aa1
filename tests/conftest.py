"""What holds for all tests."""

import os
import signal
from collections.abc import Iterator

import pytest

from deepzig.evaluate import read_speed
from deepzig.threads import available_threads


def pytest_configure() -> None:
    """Let Ctrl-C reach what tests start, where a shell has it ignored: after `make test &` in a script."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_config_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The config file of whoever runs the tests is not read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("DEEPZIG_CONFIG", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def share_of_the_cores() -> Iterator[None]:
    """Processes that test beside each other share the cores: threads that spin for work would hold the others up.

    Tests that are about threads ask for as many as they need.
    """
    n_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(max(1, available_threads() // n_processes)))
        yield


@pytest.fixture(scope="session", autouse=True)
def memory_is_measured_in_short() -> Iterator[None]:
    """Tests need no sure figure, and half a gigabyte takes a second of two cores; processes of their own read all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_speed, "MATRIX_BYTES", 1 << 20)
        patch.setattr(read_speed, "BUDGET_S", 0.0)
        yield
