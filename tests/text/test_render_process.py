"""A hostile template ends soon, with one line, and takes little memory; the worker never outlives its use."""

import gc
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deepzig.errors import RequestError, ResourceError, TokenizerError
from deepzig.text.constraint import from_regex
from deepzig.text.grammar_trial import GrammarTrial
from deepzig.text.render_process import RenderProcess

MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
MAX_WORKER_KB = 200 << 10
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def started() -> Iterator[list[RenderProcess]]:
    processes: list[RenderProcess] = []
    yield processes
    for process in processes:
        process.close()


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 'x' * (messages|length * 10**9) }}",
        "{{ (messages * 10**9)|length }}",
        "{{ ('%0999999999d' % (messages|length))|length }}",
        "{{ '{:>999999999}'.format(messages|length)|length }}",
        "{{ messages[0].role|center(messages|length * 10**9) }}",
        "{{ messages[0].role|indent(10**9) }}",
        "{{ messages|tojson(indent=10**9) }}",
        "{{ messages|batch(10**9, 1)|list }}",
        "{{ messages[0].role.ljust(10**9)|join }}",
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}" + "y" * 100_000 + "{% endfor %}{% endset %}",
        "{{ (7 ** (10**8 * (messages|length))) % 3 }}",
        "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
        "{% if a %}" * 2000 + "{% endif %}" * 2000,
    ],
)
def test_hostile_template(started: list[RenderProcess], template: str) -> None:
    process = RenderProcess(template)
    started.append(process)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(TokenizerError) as caught:
        process.render({}, MESSAGES)
    process.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 5, "the worker computes for 2 s"
    forked = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # a child counts as large as its parent until it starts
    assert after.ru_maxrss <= max(MAX_WORKER_KB, forked) or after.ru_maxrss == before.ru_maxrss
    assert str(caught.value).startswith("the chat template ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% if %}", "line 1: TemplateSyntaxError"),
        ("{{ messages.foo.bar }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% set x = messages.clear() %}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError|UndefinedError"),
        ("{{ range(10**7) }}", "OverflowError"),
    ],
)
def test_forbidden_or_wrong_template(started: list[RenderProcess], template: str, told: str) -> None:
    process = RenderProcess(template)
    started.append(process)
    with pytest.raises(TokenizerError, match=told) as caught:
        process.render({}, MESSAGES)
    assert "\n" not in str(caught.value)


def test_worker_is_kept(started: list[RenderProcess]) -> None:
    process = RenderProcess("{{ messages[0].content }}")
    started.append(process)
    assert process.render({}, MESSAGES) == "hi"
    assert process._process is not None
    pid = process._process.pid
    assert [process.render({}, MESSAGES) for _ in range(100)] == ["hi"] * 100
    assert process._process.pid == pid


def test_next_render_after_a_failure(started: list[RenderProcess]) -> None:
    process = RenderProcess("{% if big %}{{ 'x' * big }}{% elif loop_ %}" + ENDLESS + "{% else %}fine{% endif %}")
    started.append(process)
    for variables in ({"big": 10**9}, {"loop_": True}, {"big": 10**8}):
        with pytest.raises(TokenizerError):
            process.render({}, variables)
        assert process.render({}, {}) == "fine"


def test_next_render_after_the_worker_was_killed(started: list[RenderProcess]) -> None:
    process = RenderProcess("fine")
    started.append(process)
    assert process.render({}, {}) == "fine"
    assert process._process is not None
    process._process.kill()
    process._process.wait()
    assert process.render({}, {}) == "fine"


def test_worker_that_is_killed_while_it_renders(started: list[RenderProcess]) -> None:
    """The template is not to blame, and the next render goes well."""
    process = RenderProcess("{% if endless %}" + ENDLESS + "{% endif %}fine")
    started.append(process)
    assert process.render({}, {}) == "fine"
    assert process._process is not None
    worker = psutil.Process(process._process.pid)
    idle_s = worker.cpu_times().user

    def kill() -> None:
        while worker.cpu_times().user < idle_s + 0.2:
            time.sleep(0.01)
        worker.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ResourceError, match="was killed") as caught:
        process.render({}, {"endless": True})
    killer.join()
    assert "\n" not in str(caught.value)
    assert process.render({}, {}) == "fine"


def test_interrupt_while_waiting_leaves_no_stale_answer(
    started: list[RenderProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = RenderProcess("{{ x }}")
    started.append(process)
    assert process.render({}, {"x": 1}) == "1"
    assert process._process is not None and process._process.stdout is not None
    with monkeypatch.context() as patched:
        patched.setattr("deepzig.text.render_process.json.loads", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            process.render({}, {"x": 2})
    assert process.render({}, {"x": 3}) == "3"


def test_interrupt_at_the_start_leaves_no_stale_answer(
    started: list[RenderProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = RenderProcess("{{ x }}")
    started.append(process)
    with monkeypatch.context() as patched:
        patched.setattr("deepzig.text.worker_process.threading.Timer.start", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            process.render({}, {"x": 1})
    assert process.render({}, {"x": 2}) == "2"
    assert process.render({}, {"x": 3}) == "3"


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_threads_get_their_own_answers(started: list[RenderProcess]) -> None:
    process = RenderProcess("{{ x }}")
    started.append(process)
    wrong: list[str] = []

    def ask(number: int) -> None:
        for i in range(30):
            answer = process.render({}, {"x": f"{number}-{i}"})
            if answer != f"{number}-{i}":
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_worker_ends_with_its_object() -> None:
    process = RenderProcess("fine")
    assert process.render({}, {}) == "fine"
    assert process._process is not None
    worker = psutil.Process(process._process.pid)
    del process
    gc.collect()
    assert not worker.is_running()


def test_workers_leave_no_core_dumps(started: list[RenderProcess]) -> None:
    renderer, trial = RenderProcess("fine"), GrammarTrial(10, [0], {})
    started.append(renderer)
    renderer.render({}, {})
    trial.run(from_regex("yes|no"))
    for worker in (renderer, trial):
        assert worker._process is not None
        assert psutil.Process(worker._process.pid).rlimit(psutil.RLIMIT_CORE) in ((0, 0), (1, 1))
    trial.close()


@pytest.mark.parametrize("template", ["fine", ENDLESS])
def test_worker_ends_with_the_main_process(template: str) -> None:
    """Even if that is killed while the worker computes."""
    program = (
        "import sys, threading; from deepzig.text.render_process import RenderProcess;"
        f"p = RenderProcess({template!r}); threading.Thread(target=p.render, args=({{}}, {{}}), daemon=True).start()\n"
        "while p._process is None: pass\n"
        "print(p._process.pid, flush=True); sys.stdin.read()"
    )
    main = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert main.stdout is not None and main.stdin is not None
    worker = psutil.Process(int(main.stdout.readline()))
    main.kill()
    main.wait()
    main.stdin.close()
    main.stdout.close()
    worker.wait(timeout=20)
    assert not worker.is_running()


def test_worker_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ResourceError, match="cannot be started"):
        RenderProcess("fine").render({}, {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ResourceError, match="ended at its start"):
        RenderProcess("fine").render({}, {})


def test_files_beside_a_script_do_not_hide_the_standard_library(
    started: list[RenderProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    process = RenderProcess("fine")
    started.append(process)
    assert process.render({}, {}) == "fine"


def test_working_directory_may_be_gone(
    started: list[RenderProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.syspath_prepend("")  # as Python has it where it is typed
    (tmp_path / "gone").rmdir()
    process = RenderProcess("fine")
    started.append(process)
    assert process.render({}, {}) == "fine"


def test_fork_gets_a_worker_of_its_own(started: list[RenderProcess]) -> None:
    process = RenderProcess("{{ x }}")
    started.append(process)
    assert process.render({}, {"x": 1}) == "1"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = process.render({}, {"x": 2})
        process.close()
        os.write(writer, answer.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"2"
    os.close(reader)
    os.close(writer)
    assert process.render({}, {"x": 3}) == "3"


def test_refusal_is_the_callers_error(started: list[RenderProcess]) -> None:
    process = RenderProcess("{{ raise_exception('roles must alternate') }}")
    started.append(process)
    with pytest.raises(RequestError, match="roles must alternate"):
        process.render({}, MESSAGES)
