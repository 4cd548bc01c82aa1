"""Every command and Python snippet of the documents is run on the bundled model, or stands in NOT_RUN with a reason."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deepzig.cli import main
from tests.hub import fake_hub
from tools.snippets import (
    BUNDLED,
    STAND_IN_REPOSITORIES,
    Command,
    Snippet,
    Walk,
    path_with,
    prepare,
    snippets_of,
    without_shell,
)

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ON_A_CLUSTER = ROOT / "docs/several-machines.md"  # tests/distributed/test_ray_cluster.py runs it
PROGRAMS = {"deepzig", "python3", "curl", "make", "chmod", "llm", "printf"}
LANGUAGES = {"sh", "console", "python", "json", "markdown", "ini", "nginx", "text"}

# Commands that this test does not run, and why. A line ends where its comment begins.
INSTALLS = "installs packages; make test-install and make test-readme do"
NOT_RUN = {
    "pip install .": INSTALLS,
    "pip install openai": INSTALLS,
    "python3 -m venv ~/deepzig-env": INSTALLS,
    ". ~/deepzig-env/bin/activate": INSTALLS,
    "pip install llm": INSTALLS,
    ".venv/bin/pip install torch==2.13.0 transformers==5.23.0 gguf": "gigabytes of packages",
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON" '
    ".venv/bin/pip install llama-cpp-python": "compiles another project",
    'eval "$(deepzig completion bash)"': "for an interactive shell; tests/cli/test_cli_completion.py runs it",
    'eval "$(deepzig completion zsh)"': "for an interactive zsh",
    "deepzig completion fish | source": "for an interactive fish",
    "python3 -m bench.decode FOLDER --precision fast": "a benchmark",
    "hf download deepseek-ai/DeepSeek-V2-Lite-Chat --local-dir ./DeepSeek-V2-Lite-Chat": "a program of huggingface_hub",
    "sudo systemctl enable --now deepzig": "changes the machine; the unit is tested below",
    "journalctl -u deepzig -f": "goes on for ever",
    **dict.fromkeys(
        [
            "podman build --format docker -t deepzig .",
            "docker build -f Containerfile -t deepzig .",
            "podman run --rm -p 127.0.0.1:8000:8000 -e DEEPZIG_SERVE_INSECURE=1 deepzig",
            "podman secret create deepzig-keys keys",
            "podman run -d --name deepzig -p 8000:8000 -v models:/models -e DEEPZIG_MODEL=/models/v2-lite-int8 \\\n"
            "    --secret deepzig-keys -e DEEPZIG_SERVE_API_KEY_FILE=/run/secrets/deepzig-keys \\\n"
            "    --read-only --tmpfs /tmp --cap-drop all --memory 24g --cpus 8 --stop-timeout 45 deepzig",
        ],
        "needs a container engine; tests/test_containerfile.py checks the file",
    ),
    "pip install '.[ray]'": INSTALLS,
    **dict.fromkeys(
        [
            "ray start --head --disable-usage-stats --include-dashboard=false",
            "ray start --address=192.168.1.10:6379 --disable-usage-stats",
            "ray get-auth-token --generate",
            "export RAY_AUTH_MODE=token",
        ],
        "needs Ray; tests/distributed/test_ray_cluster.py starts a cluster by itself",
    ),
    "scp dist/deepzig.pyz server:": "needs another machine",
    "ssh server ./deepzig.pyz serve": "needs another machine; make test-zipapp starts the file",
    "deepzig bench serve https://llm.example/v1 --endpoint chat --rate 2 --json": "needs a server elsewhere",
}

# A thread is enough for so small a model, beside other tests; benches need not be sure of their figures here.
IN_SHORT = {"DEEPZIG_THREADS": "1", "DEEPZIG_BENCH_REPETITIONS": "1", "DEEPZIG_BENCH_SERVE_REQUESTS": "2"}


def run_in_process(words: list[str], stdin: bytes) -> "subprocess.CompletedProcess[str]":
    result = CliRunner().invoke(main, words, input=stdin)
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


def is_run(text: str) -> bool:
    """Whether this test runs a command; what `make` does is run by those who call make."""
    return text not in NOT_RUN and not text.startswith("make")


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each != ON_A_CLUSTER], ids=lambda path: path.name)
def test_snippets_run_in_order(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_document(document, tmp_path, monkeypatch)


def run_document(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all that a document tells to type, but what stands in NOT_RUN."""
    text = document.read_text(encoding="utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(folder, text)
    monkeypatch.chdir(folder)
    with fake_hub(BUNDLED, tmp_path / "hub", monkeypatch, set(STAND_IN_REPOSITORIES.findall(text))):
        for name, value in IN_SHORT.items():
            monkeypatch.setenv(name, value)
        environment = path_with(Path(sys.executable).parent) | IN_SHORT | {"LLM_USER_PATH": str(tmp_path / "llm")}
        with Walk(folder, environment, run_in_process, any_port=True) as walk:
            for snippet in snippets_of(document):
                if snippet.language == "python":
                    walk.python(snippet.text)
                for command in snippet.commands():
                    if is_run(command.plain):
                        walk.command(command)


ALL_SNIPPETS = [
    pytest.param(snippet, id=f"{document.name}:{snippet.line}")
    for document in DOCUMENTS
    for snippet in snippets_of(document)
]


@pytest.mark.parametrize("snippet", ALL_SNIPPETS)
def test_snippets_are_of_a_kind_that_is_checked(snippet: Snippet) -> None:
    """Nothing escapes the test above by being written another way."""
    commands = snippet.commands()
    assert commands or snippet.language in LANGUAGES or not re.search(r"^\W*deepzig ", snippet.text, re.MULTILINE)
    unknown = {command.plain for command in commands if command.program not in PROGRAMS}
    assert unknown <= set(NOT_RUN), "indented code is shell; fence other code with its language"


def test_what_is_not_run_is_still_in_the_documents() -> None:
    written = {command.plain for document in DOCUMENTS for s in snippets_of(document) for command in s.commands()}
    assert set(NOT_RUN) - written == set()


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = [c.plain for document in DOCUMENTS for s in snippets_of(document) for c in s.commands()]
    asked = {word for text in named if text.startswith("make ") for word in text.split()[1:2]}
    assert "test" in asked and asked <= targets


# ---- files that the documents show


def shown(page: str, language: str) -> str:
    """The one snippet of a language on a page."""
    (snippet,) = (s for s in snippets_of(ROOT / "docs" / page) if s.language == language)
    return snippet.text


def test_the_systemd_unit_is_sound_and_its_command_serves(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "model")
    (tmp_path / "keys").write_text("0123456789\n", encoding="utf-8")
    unit = shown("deployment.md", "ini").replace("/opt/deepzig/bin", str(Path(sys.executable).parent))
    (command,) = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    command = command.replace("/srv/models/v2-lite-int8", "model").replace("%d/keys", "keys")
    variables = dict(re.findall("^Environment=(.*?)=(.*)$", unit, re.MULTILINE))
    with Walk(tmp_path, path_with(Path(sys.executable).parent) | variables, any_port=True) as walk:
        walk.command(Command(1, command))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the command was run, the rest of the unit was not checked")
    (tmp_path / "deepzig.service").write_text(unit, encoding="utf-8")
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / "deepzig.service")]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_config_file_is_one_that_every_command_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text(shown("configuration.md", "toml"), encoding="utf-8")
    monkeypatch.setenv("DEEPZIG_CONFIG", str(tmp_path / "config.toml"))
    done = run_in_process(["kernels"], b"")
    assert done.returncode == 0, done.stderr


# ---- the walk itself


def snippets(tmp_path: Path, text: str) -> list[Snippet]:
    document = tmp_path / "page.md"
    document.write_text(text, encoding="utf-8")
    return snippets_of(document)


def test_indented_fenced_and_console_code_is_found(tmp_path: Path) -> None:
    page = (
        "Text:\n\n    deepzig info \\\n      --json   # all of it\n    A=1 deepzig kernels\n\n```python\nx = 1\n```\n"
    )
    shell, python, console = snippets(tmp_path, page + "```console\n$ echo a\na\n$ true\n```\n")
    first, second = shell.commands()
    assert (first.line, first.plain, first.program) == (3, "deepzig info \\\n  --json", "deepzig")
    assert (second.line, second.plain, second.program) == (5, "A=1 deepzig kernels", "deepzig")
    assert (python.line, python.language, python.text) == (8, "python", "x = 1\n")
    assert [(c.line, c.text, c.expected) for c in console.commands()] == [(11, "echo a", "a\n"), (13, "true", "")]


def test_prose_that_is_indented_is_no_code(tmp_path: Path) -> None:
    assert snippets(tmp_path, "- a list\n    goes on here\n") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deepzig info --json  # all", (["info", "--json"], b"")),
        ('deepzig generate "a > b" < in.txt', (["generate", "a > b"], b"input")),
        ("deepzig info | head", None),
        ("deepzig info > out.txt", None),
        ("deepzig generate $PROMPT", None),
        ("A=1 deepzig info", None),
        ("echo deepzig", None),
    ],
)
def test_only_what_needs_no_shell_goes_without(text: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"input")
    assert without_shell(text, tmp_path) == expected


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("\n    false\n", "exit code 1"),
        ("\n    deepzig generate --nonsense x\n", "No such option"),
        ("```console\n$ echo a\nb\n```\n", "prints\na"),
        ("```python\nraise ValueError('no')\n```\n", "ValueError: no"),
        ("```python\nif 0: print(1)\n```\n", "prints nothing"),
        ("\n    deepzig serve -m ./nowhere\n", "nowhere"),
    ],
)
def test_what_fails_is_named(page: str, complaint: str, tmp_path: Path) -> None:
    (snippet,) = snippets(tmp_path, page)
    with (
        pytest.raises(AssertionError, match=complaint),
        Walk(tmp_path, path_with(Path(sys.executable).parent), run_in_process) as walk,
    ):
        if snippet.language == "python":
            walk.python(snippet.text)
        for command in snippet.commands():
            walk.command(command)
