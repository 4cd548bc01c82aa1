"""dist/deepzig.pyz, as somebody starts it who has nothing else: `make test-zipapp`, which makes the file first.

Each test has an empty home, an empty folder to run in, and no variables but HOME and PATH.
"""

import ast
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import deepzig

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "dist" / "deepzig.pyz"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
GENERATE = ("generate", "Once upon a time", "--max-tokens", "16", "--temperature", "0", "--json", "--quiet")
BASE_PYTHON = Path(sys.base_prefix) / "bin"

# Root in a namespace of its own: no network, and mounts that nobody else sees.
ALONE = ("unshare", "--map-root-user", "--net", "--mount", "sh", "-ec")
READ_ONLY = 'mount --bind . .; mount -o remount,bind,ro .; cd "$PWD"; exec "$@"'
READ_ONLY_HOME = 'mount --bind "$HOME" "$HOME"; mount -o remount,bind,ro "$HOME"; exec "$@"'
FULL_DISK = (
    'mount -t tmpfs -o size=100m tmpfs "$HOME"; "$@" > /dev/null && exit 9; '
    'mount -o remount,size=1g tmpfs "$HOME"; exec "$@"'
)

pytestmark = [pytest.mark.zipapp, pytest.mark.timeout(900)]
needs_namespaces = pytest.mark.skipif(
    subprocess.run([*ALONE, "true"], capture_output=True).returncode != 0 if sys.platform == "linux" else True,
    reason="needs Linux that lets its users make namespaces (unshare --map-root-user)",
)


class Place:
    """An empty folder to run in, and an empty home."""

    def __init__(self, folder: Path, python: Path = BASE_PYTHON) -> None:
        self.folder, self.home = folder / "empty", folder / "home"
        self.folder.mkdir(parents=True)
        self.home.mkdir()
        self.processes: list[subprocess.Popen[str]] = []
        self.environment = {"HOME": str(self.home), "PATH": f"{python}:/usr/bin:/bin"}

    def start(self, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment | environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def end(self) -> None:
        """Whatever a test that failed has left."""
        for process in self.processes:
            with process:
                process.kill()

    def run(self, *command: str | Path, **environment: str) -> tuple[str, str]:
        """stdout and stderr of a command that must succeed."""
        return ended(self.start(*command, **environment))


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return stdout, stderr


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    assert FILE.exists(), "make zipapp makes it"
    place = Place(tmp_path)
    yield place
    place.end()
    assert not list(place.folder.iterdir()), "something was written to the folder it ran in"


@pytest.fixture(scope="module")
def text() -> str:
    """What the tree's own engine makes of the prompt."""
    with deepzig.load("stories") as llm:
        return llm.generate(GENERATE[1], deepzig.SamplingParams(max_tokens=16, temperature=0.0)).text


def text_in(stdout: str) -> str:
    return str(json.loads(stdout)["text"])


def test_every_kernel_is_inside_for_every_instruction_set() -> None:
    wanted = set()
    for contract in (ROOT / "deepzig/_kernels").glob("*.py"):
        if contract.with_name(f"{contract.stem}_cython.pyx").exists():
            (isas,) = re.findall(r"^ISAS = (.*)$", contract.read_text(encoding="utf-8"), re.MULTILINE)
            wanted |= {f"{contract.stem}_cython_{isa}" for isa in ast.literal_eval(isas)}
    assert "linear_cython_amx" in wanted
    with zipfile.ZipFile(FILE) as archive:
        inside = {Path(name).name.partition(".")[0] for name in archive.namelist() if name.endswith(".so")}
    assert wanted - inside == set()


@needs_namespaces
def test_first_start_without_network_in_a_read_only_folder(place: Place, text: str) -> None:
    confined = (*ALONE, READ_ONLY, "sh")
    assert place.start(*confined, "touch", "file").wait(30) != 0
    stdout, stderr = place.run(*confined, FILE, *GENERATE)
    assert text_in(stdout) == text
    assert stderr == ""


def test_started_several_times_at_once(place: Place, text: str) -> None:
    processes = [place.start(FILE, *GENERATE) for _ in range(3)]
    assert [text_in(ended(process)[0]) for process in processes] == [text] * 3
    assert len(list((place.home / ".cache/pex/venvs").rglob("bin/deepzig"))) == 1


def test_killed_while_it_extracts(place: Place, text: str) -> None:
    process = place.start(FILE, *GENERATE)
    while not list(place.home.glob(".cache/pex/installed_wheels/*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert text_in(place.run(FILE, *GENERATE)[0]) == text


@needs_namespaces
def test_full_disk_is_said_and_does_no_lasting_harm(place: Place, text: str) -> None:
    stdout, stderr = place.run(*ALONE, FULL_DISK, "sh", FILE, *GENERATE)
    assert "No space left on device" in stderr
    assert text_in(stdout) == text


def test_pex_root_says_where_to(place: Place, tmp_path: Path, text: str) -> None:
    assert text_in(place.run(FILE, *GENERATE, PEX_ROOT=str(tmp_path / "elsewhere"))[0]) == text
    assert (tmp_path / "elsewhere/venvs").is_dir() and not list(place.home.iterdir())


@needs_namespaces
def test_home_that_cannot_be_written(place: Place, tmp_path: Path, text: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    stdout, stderr = place.run(*ALONE, READ_ONLY_HOME, "sh", FILE, *GENERATE, TMPDIR=str(temporary))
    assert text_in(stdout) == text
    assert "un-writeable" in stderr and not list(temporary.iterdir())


def test_other_patch_versions_of_python(tmp_path: Path, text: str) -> None:
    found = installed_pythons()
    if len(found) < 2:
        pytest.skip(f"only one patch version of {PYTHON} is installed here")
    for version, folder in found.items():
        place = Place(tmp_path / version, folder)
        assert text_in(place.run(FILE, *GENERATE)[0]) == text
        used, _ = place.run(FILE, "-c", "import platform; print(platform.python_version())", PEX_INTERPRETER="1")
        assert used.strip() == version


def installed_pythons() -> dict[str, Path]:
    """Version and folder of each Python of this minor version, on the PATH or where pyenv keeps them."""
    folders = [*map(Path, os.get_exec_path()), *Path.home().glob(".pyenv/versions/*/bin")]
    ask = "import platform, sys; print(platform.python_version(), sys.base_prefix)"
    found = {}
    for python in {folder / PYTHON for folder in folders}:
        if python.exists():
            done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
            if done.returncode == 0:  # pyenv has a command for versions, too, that are not chosen
                version, prefix = done.stdout.split()
                found[version] = Path(prefix, "bin")
    return found


def test_no_python(place: Place) -> None:
    process = place.start(FILE, "--version", PATH=str(place.folder))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and PYTHON in stderr


def test_serves(place: Place, text: str) -> None:
    process = place.start(FILE, "serve", "--port", "0")
    assert process.stderr is not None
    banner = next(line for line in process.stderr if line.startswith("Serving"))
    found = re.search(r"http://127\.0\.0\.1:(\d+)", banner)
    assert found, banner
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
    body = {"prompt": GENERATE[1], "max_tokens": 16, "temperature": 0}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    assert json.load(connection.getresponse())["choices"][0]["text"] == text
    connection.request("GET", "/")
    page = connection.getresponse()
    assert page.status == 200 and b"<html" in page.read()
    connection.close()
    process.send_signal(signal.SIGTERM)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode == 0
