"""`deepzig bench` and its subcommands: what they print in each form, exit codes, Ctrl-C."""

import contextlib
import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from deepzig.cli.bench import _measure
from deepzig.evaluate.speed import SpeedTest
from tests.odd_server import DONE, Asked, OddServer, odd_server, text

Run = Callable[..., Result]
TINY = ("--prompt", "8", "--decode", "4", "--repetitions", "2")


@pytest.fixture
def server() -> Iterator[OddServer]:
    with odd_server() as running:
        yield running


@pytest.fixture(autouse=True)
def bandwidth(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """Bytes a second that memory is said to give: to measure it takes longer than all else here."""
    monkeypatch.setattr("deepzig.evaluate.speed_report.read_bandwidth", lambda n_threads: 8e9)
    yield 8e9


def rows(output: str) -> list[list[str]]:
    """The cells of the table after the lines of text."""
    return [re.split(r" {2,}", line.strip()) for line in output.split("\n\n")[1].splitlines()]


# ---- a model


def test_table(run: Run) -> None:
    result = run("bench", *TINY, "--depth", "0,16", "--concurrency", "1,2")
    assert result.exit_code == 0, result.stderr
    assert "model     stories" in result.stdout and "14 MB: int8 g128" in result.stdout
    head, *found = rows(result.stdout)
    assert head == ["test", "tok/s", "±", "of read", "runs"]
    names = ["pp8", "tg4", "pp8 @16", "tg4 @16", "pp8 x2", "tg4 x2", "pp8 @16 x2", "tg4 @16 x2"]
    assert [row[0] for row in found] == names
    assert all(float(row[1]) > 0 and float(row[2]) >= 0 and row[-1] == "2" for row in found)
    assert [row[0] for row in found if len(row) == 5] == ["tg4", "tg4 @16"]  # beside the memory's speed
    assert "memory    read at 8 GB/s" in result.stdout
    assert result.stderr == "Using the bundled model 'stories'; -m MODEL takes another.\n"  # no bars without a terminal


def test_json_holds_what_a_reader_needs(run: Run, bandwidth: float) -> None:
    result = run("bench", "-m", "stories", *TINY, "--threads", "1", "--cache-dtype", "int8", "--json")
    assert result.exit_code == 0 and result.stderr == ""
    shown = json.loads(result.stdout)
    assert shown["kind"] == "deepzig bench" and shown["is_complete"]
    assert {"cpu", "cores", "kernels", "forced"} <= set(shown["machine"]) and shown["machine"]["threads"] == 1
    assert shown["model"]["name"] == "stories" and set(shown["model"]["formats"]) >= {"bf16", "int8 g128"}
    assert shown["settings"] == {"precision": "exact", "deterministic": False, "cache_dtype": "int8", "repetitions": 2}
    prompt, decode = shown["figures"]
    assert shown["beside"] == {"read_bandwidth": bandwidth}
    assert prompt["details"] == {"kind": "prompt", "n_tokens": 8, "depth": 0, "concurrency": 1}
    assert decode["name"] == "tg4" and len(decode["samples"]) == 2
    told = json.loads(run("info", "-m", "stories", "--cache-dtype", "int8", "--context", "3", "--json").stdout)
    n_bytes = told["as_it_is"]["bytes_per_token"]  # in the middle of the answer three tokens are cached
    assert decode["details"]["bytes_per_token"] == n_bytes
    assert decode["details"]["share_of_read"] == pytest.approx(decode["mean"] * n_bytes / bandwidth)
    assert decode["mean"] == pytest.approx(sum(decode["samples"]) / 2)
    assert decode["deviation"] == pytest.approx(abs(decode["samples"][0] - decode["samples"][1]) / 2**0.5)


def test_csv_repeats_the_run_in_each_line(run: Run) -> None:
    result = run("bench", "-q", *TINY, "--csv")
    first, second = csv.DictReader(io.StringIO(result.stdout))
    assert (first["name"], second["name"], second["kind"], second["n_tokens"]) == ("pp8", "tg4", "decode", "4")
    assert first["model_name"] == second["model_name"] == "stories" and first["machine_cpu"]
    assert float(first["mean"]) > 0 and first["samples"] == "2"


def test_markdown(run: Run) -> None:
    result = run("bench", "-q", "--prompt", "8,16", "--decode", "0", "--repetitions", "1", "--markdown")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("- model: stories")
    head, rule, first, second = lines[-4:]
    assert (head, rule) == ("| test | tok/s | runs |", "| --- | ---: | ---: |")
    assert re.fullmatch(r"\| pp8 \| [\d.]+ \| 1 \|", first) and second.startswith("| pp16 |")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--prompt", "0", "--decode", "0"], "nothing to measure"),
        (["--prompt", "8,x"], "'x' is no number"),
        (["--decode", "-1"], "'-1' is no number"),
        (["--prompt", "9" * 5000], "999' is no number"),
        (["--prompt", "2000"], "pp2000 is 2001 tokens long, but the context holds 1024"),
        (["--concurrency", "65"], "1 to 64"),
        (["--prompt", "0", "--depth", "900", "--concurrency", "64", "--cache-bytes", "8M"], "larger --cache-bytes"),
        (["--prompt", "8", "compare", "a", "b"], "--prompt is for a model"),
        (["-m", "stories", "serve", "http://host"], "--model is for a model"),
        (["stories"], "stories"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str], part: str) -> None:
    result = run("bench", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert part in result.stderr and "Traceback" not in result.stderr


def test_the_form_that_is_nearest_counts(run: Run) -> None:
    tiny = ("bench", "-q", "--prompt", "8", "--decode", "0", "--repetitions", "1")
    assert run(*tiny, "--csv", env={"DEEPZIG_JSON": "1"}).stdout.startswith("name,")
    assert json.loads(run(*tiny, env={"DEEPZIG_JSON": "1"}).stdout)
    result = run(*tiny, "--csv", "--json")
    assert result.exit_code == 2 and "--json and --csv exclude each other" in result.stderr


def test_help_shows_all_three(run: Run) -> None:
    result = run("bench", "--help")
    assert "--concurrency" in result.stdout and "Compare two results" in result.stdout
    assert "Measure how fast a server answers" in result.stdout


def read_to_end(terminal: int) -> None:
    """Until nobody has the other end open, which Linux tells by an error."""
    with open(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while file.read(1000):
            pass


def test_an_interrupt_ends_with_what_was_measured() -> None:
    """On a real terminal: Ctrl-C once a few samples are there."""
    terminal, its_end = pty.openpty()
    arguments = ["--prompt", "8", "--decode", "4", "--repetitions", "9000", "--json"]
    command = [sys.executable, "-m", "deepzig", "bench", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its_end, start_new_session=True) as process:
        os.close(its_end)
        drawn = b""
        try:
            while not re.search(rb" [1-9]\d+/18002 runs pp8", drawn):
                drawn += os.read(terminal, 1000)
            threading.Thread(target=read_to_end, args=(terminal,)).start()  # a full terminal would hold it up
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()  # or a failure would wait for its end
    assert process.returncode == 130
    shown = json.loads(output)
    (figure,) = shown["figures"]
    assert not shown["is_complete"] and figure["name"] == "pp8" and 5 < len(figure["samples"]) < 9000


def test_an_interrupt_before_the_first_sample_prints_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepzig.evaluate.speed.measure", interrupt)
    result = run("bench", "-q", *TINY)
    assert result.exit_code == 130 and result.stdout == ""


def test_no_number_of_repetitions_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.evaluate.speed.measure", lambda _llm, tests, _n: ((test, 1.0) for test in tests))
    tests, samples = [SpeedTest("prompt", 8), SpeedTest("prompt", 16)], {}
    tracemalloc.start()
    _measure(None, tests, 1_000_000, samples)  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert samples == {test: [1.0] for test in tests}
    assert peak < 1e6  # a name for each would take 100 MB


def test_an_interrupt_after_the_last_sample_loses_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepzig.evaluate.speed_report.SpeedRun.finish", interrupt)
    result = run("bench", "-q", *TINY, "--json")
    assert result.exit_code == 130
    assert [len(figure["samples"]) for figure in json.loads(result.stdout)["figures"]] == [2, 2]


# ---- compare


@pytest.fixture
def results(run: Run, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of a bench, of different sizes."""
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, sizes in zip(paths, (("--decode", "4"), ("--decode", "4,5")), strict=True):
        result = run("bench", "-q", "--prompt", "8", *sizes, "--repetitions", "3", "--json")
        path.write_text(result.stdout, encoding="utf-8")
    return paths


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def set_samples(*means: float) -> Callable[[dict[str, Any]], None]:
    """Three samples within one part in a hundred of each mean."""

    def change(content: dict[str, Any]) -> None:
        for figure, mean in zip(content["figures"], means, strict=False):
            figure["samples"] = [0.99 * mean, mean, 1.01 * mean]

    return change


def test_compare_says_what_is_faster_and_what_differs(run: Run, results: tuple[Path, Path]) -> None:
    before, after = results
    changed(before, set_samples(100.0, 50.0))
    changed(after, set_samples(150.0, 50.5))
    changed(before, lambda content: content["machine"].update(threads=2))
    changed(after, lambda content: content["machine"].update(threads=7))
    result = run("bench", "compare", str(before), str(after))
    assert result.exit_code == 0 and result.stderr == ""
    assert "differs   machine: threads: 2 | 7" in result.stdout
    assert "only in B tg5" in result.stdout
    uncertainty = 1.5 * (2**0.5 * 0.01 / 3**0.5) * 4.30
    assert rows(result.stdout)[1:] == [
        ["pp8, tok/s", "100.00", "150.00", "1.500", f"{uncertainty:.3f}", "faster"],
        ["tg4, tok/s", "50.00", "50.50", "1.010", f"{uncertainty / 1.5 * 1.01:.3f}", "no clear difference"],
    ]


def test_compare_notes_another_machine(run: Run, results: tuple[Path, Path]) -> None:
    before, after = results
    changed(after, lambda content: content["machine"].update(cpu="Another CPU"))
    result = run("bench", "compare", str(before), str(after), "--json")
    assert result.exit_code == 0 and "The machines differ" in result.stderr
    shown = json.loads(result.stdout)
    assert not shown["is_same_machine"] and shown["only_after"] == ["tg5"]
    assert [each["after"] for each in shown["differences"] if each["name"] == "cpu"] == ["Another CPU"]
    assert [each["name"] for each in shown["compared"]] == ["pp8", "tg4"]
    assert all(each["ratio"] == pytest.approx(each["b"]["mean"] / each["a"]["mean"]) for each in shown["compared"])


def test_compare_in_csv_and_markdown(run: Run, results: tuple[Path, Path]) -> None:
    first, second = csv.DictReader(io.StringIO(run("bench", "compare", *map(str, results), "--csv").stdout))
    assert (first["name"], second["name"], first["unit"]) == ("pp8", "tg4", "tok/s")
    assert float(first["ratio"]) == pytest.approx(float(first["b"]) / float(first["a"]), abs=1e-3)
    assert "| pp8, tok/s |" in run("bench", "compare", *map(str, results), "--markdown").stdout


def test_compare_wants_results(run: Run, results: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("{}", encoding="utf-8")
    result = run("bench", "compare", str(results[0]), str(tmp_path / "none.json"))
    assert result.exit_code == 3 and "none.json is not what" in result.stderr
    assert run("bench", "compare", str(results[0]), str(tmp_path / "missing.json")).exit_code == 2


# ---- a server

FEW = ("--requests", "4", "--prompt-tokens", "10", "--max-tokens", "3")


def test_serve_prints_times_and_counts(run: Run, server: OddServer) -> None:
    server.replies = [server.reply, lambda asked: asked.send(503, b'{"error": {"message": "busy"}}')]
    result = run("bench", "serve", server.url, *FEW)
    assert result.exit_code == 0
    assert "1 at once: 3 answered, 1 failed" in result.stdout and "1 x HTTP 503: busy" in result.stdout
    assert "prompts of 10, answers of 3" in result.stdout
    assert result.stderr == "Warning: 1 of 4 requests failed; the figures are those of the others.\n"
    head, *found = rows(result.stdout)
    assert head == ["ms", "mean", "p50", "p99", "longest"]
    assert [row[0] for row in found] == ["first token", "further token", "between chunks", "whole answer"]
    assert all(float(row[2]) <= float(row[3]) <= float(row[4]) for row in found)
    # Chunks that come at once may be less than 0.005 ms apart, shown as 0.00.
    assert all(float(mean) > 0 for name, mean, *_ in found if name in ("first token", "whole answer"))


def test_serve_says_when_the_server_does_not_count(run: Run, server: OddServer) -> None:
    server.reply = lambda asked: asked.stream(text(" a"), text(" b"), DONE)
    result = run("bench", "serve", server.url, *FEW, "--rate", "500", "--concurrency", "2")
    assert result.exit_code == 0 and "500 a second, 2 at once" in result.stdout
    assert "prompts of about 10, answers of 2, counted by chunks" in result.stdout


def test_serve_in_json_keeps_the_key_to_itself(run: Run, server: OddServer) -> None:
    result = run("bench", "serve", server.url, *FEW, "--json", env={"DEEPZIG_BENCH_SERVE_API_KEY": "secret"})
    assert {key for _, key, _ in server.asked} == {"Bearer secret"}
    assert "secret" not in result.output
    shown = json.loads(result.stdout)
    assert shown["kind"] == "deepzig bench serve" and shown["beside"]["answered"] == 4
    assert shown["model"] == {"name": "odd", "url": f"{server.url}/v1", "endpoint": "completions"}
    assert [len(figure["samples"]) for figure in shown["figures"]] == [4, 4, 4, 4, 1]
    assert shown["figures"][0]["p50"] <= shown["figures"][0]["p99"]


def test_results_of_servers_are_compared_too(run: Run, server: OddServer, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(run("bench", "serve", server.url, *FEW, "--json").stdout, encoding="utf-8")
    result = run("bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert result.exit_code == 0 and "nothing but the figures" in result.stdout
    assert [row[0] for row in rows(result.stdout)[1:3]] == ["first token, ms", "further token, ms"]


def test_serve_with_failures_alone_exits_with_5(run: Run, server: OddServer) -> None:
    server.replies = [lambda asked: asked.send(500, b"")] * 4
    result = run("bench", "serve", server.url, *FEW)
    assert result.exit_code == 5 and result.stdout == ""
    assert result.stderr == "Error: all 4 requests failed, 4 with: HTTP 500: no reason given\n"


@pytest.mark.parametrize(("url", "code"), [("http://127.0.0.1:1", 5), ("nowhere", 2), ("http://user:word@host", 2)])
def test_serve_without_a_server(run: Run, url: str, code: int) -> None:
    result = run("bench", "serve", url)
    assert result.exit_code == code and result.stderr.startswith("Error: ") and result.stdout == ""


def test_an_interrupted_bench_of_a_server_shows_what_came(run: Run, server: OddServer) -> None:
    def interrupt(asked: Asked) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        server.replies[1](asked)

    server.replies = [server.reply, server.reply, interrupt]
    result = run("bench", "serve", server.url, *FEW)
    assert result.exit_code == 130
    assert "2 answered, 0 failed" in result.stdout and "by Ctrl-C" in result.stdout
