"""Conversions that are interrupted, by kill -9 at many points, by a full disk, by another process, and go on."""

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepzig.checkpoint import convert as convert_module
from deepzig.checkpoint.convert import Options, convert
from deepzig.checkpoint.manifest import MANIFEST_FILE
from deepzig.checkpoint.model_names import BUNDLED
from deepzig.checkpoint.recipe import Recipe
from deepzig.checkpoint.safe_files import LOCK_FILE, locked
from deepzig.checkpoint.verify import verify
from deepzig.checkpoint.writer import SafetensorsWriter
from deepzig.errors import CheckpointError, ResourceError, shown_bytes

SHARD_BYTES = 3_000_000
STORIES = BUNDLED["stories"]
STORIES_OPTIONS = Options(Recipe("int8"), SHARD_BYTES)


def tree(directory: Path) -> dict[str, str]:
    """Name -> hash of all files, hidden ones too."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


# ---- kill -9 ---------------------------------------------------------------------------------------------------------


class Events:
    """Counts what a conversion does to the disk, and kills the process in the middle of event `kill_at`."""

    def __init__(self, kill_at: int) -> None:
        self.count, self._kill_at = 0, kill_at
        self._patch(SafetensorsWriter, "_put", self._half_a_write)
        for name in ("fsync", "replace"):
            self._patch(os, name, lambda original, *arguments: original(*arguments))
        self._patch(Path, "unlink", lambda original, *arguments, **options: original(*arguments, **options))

    def _patch(self, owner: Any, name: str, act: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        def patched(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._kill_at:
                if act == self._half_a_write:
                    self._half_a_write(original, *arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, name, patched)

    @staticmethod
    def _half_a_write(original: Callable[..., Any], writer: SafetensorsWriter, data: bytes | memoryview) -> None:
        original(writer, data[: len(data) // 2])
        writer._file.flush()


def convert_and_count(destination: Path, kill_at: int, counted: "multiprocessing.Queue[int]") -> None:
    """In a process of its own."""
    events = Events(kill_at)
    convert(STORIES, destination, STORIES_OPTIONS, resume=True, n_threads=2)
    counted.put(events.count)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    destination = tmp_path_factory.mktemp("whole") / "out"
    convert(STORIES, destination, STORIES_OPTIONS, n_threads=2)
    return tree(destination)


@pytest.fixture(scope="module")
def run_process() -> Iterator[Callable[[Path, int], tuple[int, int]]]:
    """run_process(destination, kill_at) -> exit code, number of events. Forked from a process without threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepzig.checkpoint.convert", "deepzig.engine.loading"])
    counted = context.Queue()

    def run(destination: Path, kill_at: int) -> tuple[int, int]:
        process = context.Process(target=convert_and_count, args=(destination, kill_at, counted))
        process.start()
        process.join()
        return process.exitcode or 0, counted.get() if process.exitcode == 0 else 0

    yield run
    counted.close()
    counted.join_thread()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("n_kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_and_resumes_give_the_uninterrupted_result(
    tmp_path: Path, uninterrupted: dict[str, str], run_process: Callable[[Path, int], tuple[int, int]], n_kills: int
) -> None:
    assert sum(name.endswith(".safetensors") for name in uninterrupted) >= 4
    exit_code, n_events = run_process(tmp_path / "counted", 0)
    assert exit_code == 0 and n_events > 100
    for kill in range(n_kills):
        destination = tmp_path / f"killed-{kill}"
        kill_at = 1 + kill * (n_events - 1) // (n_kills - 1)  # the first and the last one too
        assert run_process(destination, kill_at)[0] == -signal.SIGKILL
        check_unfinished(destination, uninterrupted)
        assert verify(destination).problems or (destination / "config.json").exists()
        convert(STORIES, destination, STORIES_OPTIONS, resume=True, n_threads=1)
        assert tree(destination) == uninterrupted, f"killed at event {kill_at} of {n_events}"
        shutil.rmtree(destination)


def check_unfinished(directory: Path, uninterrupted: dict[str, str]) -> None:
    """What has its final name is whole, and config.json comes last."""
    names = uninterrupted.keys() - {MANIFEST_FILE}
    found = {name: digest for name, digest in tree(directory).items() if name in names}
    assert found.items() <= uninterrupted.items()
    if "config.json" in found:
        assert found.keys() == names


def test_killed_twice(
    tmp_path: Path, uninterrupted: dict[str, str], run_process: Callable[[Path, int], tuple[int, int]]
) -> None:
    for kill_at in (150, 170):
        assert run_process(tmp_path / "out", kill_at)[0] == -signal.SIGKILL
    convert(STORIES, tmp_path / "out", STORIES_OPTIONS, resume=True)
    assert tree(tmp_path / "out") == uninterrupted


# ---- what may be resumed ---------------------------------------------------------------------------------------------


@pytest.fixture
def half(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A source, and what is left of its conversion to four files when it fails in the third."""
    source, destination = tmp_path / "source", tmp_path / "out"
    shutil.copytree(small_model, source)
    written = []

    def record(path: Path, n_tensors: int) -> Any:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        return original(path, n_tensors)

    original = convert_module.record_of
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "record_of", record)
        with pytest.raises(KeyboardInterrupt):
            convert(source, destination, OPTIONS)
    return source, destination


OPTIONS = Options(Recipe("int8"), 60_000)


def test_an_interrupted_run_goes_on_and_says_so(half: tuple[Path, Path], tmp_path: Path) -> None:
    source, destination = half
    assert not (destination / "config.json").exists()
    seen: list[int] = []
    result = convert(source, destination, OPTIONS, resume=True, progress=lambda state: seen.append(state.bytes_done))
    assert result.resumed_files == 2
    convert(source, tmp_path / "whole", OPTIONS)
    assert tree(destination) == tree(tmp_path / "whole")


def test_a_finished_conversion_is_left_alone(half: tuple[Path, Path]) -> None:
    source, destination = half
    convert(source, destination, OPTIONS, resume=True)
    before = {path.name: path.stat().st_mtime_ns for path in destination.iterdir()}
    result = convert(source, destination, OPTIONS, resume=True)
    assert result.files == len(before) - 1
    assert {path.name: path.stat().st_mtime_ns for path in destination.iterdir()} == before


def test_a_damaged_file_is_written_again(half: tuple[Path, Path], tmp_path: Path) -> None:
    source, destination = half
    convert(source, destination, OPTIONS, resume=True)
    whole = tree(destination)
    damaged = sorted(destination.glob("*.safetensors"))[1]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    convert(source, destination, OPTIONS, resume=True)
    assert tree(destination) == whole


def test_resume_of_nothing_starts(small_model: Path, tmp_path: Path) -> None:
    assert convert(small_model, tmp_path / "out", OPTIONS, resume=True).resumed_files == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(Recipe("int4"), 60_000), "options.format was 'int8', is 'int4'"),
        (Options(Recipe("int8", 32), 60_000), "options.group_size was None, is 32"),
        (Options(Recipe("int8"), 50_000), "options.shard_bytes was 60000, is 50000"),
        (Options(Recipe("int8", exclude=("lm_head",)), 60_000), r"options.exclude was \[\], is \['lm_head'\]"),
    ],
)
def test_other_options_are_refused(half: tuple[Path, Path], options: Options, message: str) -> None:
    source, destination = half
    before = tree(destination)
    with pytest.raises(CheckpointError, match=message):
        convert(source, destination, options, resume=True)
    assert tree(destination) == before


def touch_weights(source: Path) -> None:
    os.utime(source / "model.safetensors", ns=(1, 1))


def change_config(source: Path) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"rope_theta": 9.0}), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [(touch_weights, r"source.files.model.safetensors.mtime_ns was \d+, is 1;"), (change_config, "config_sha256 was")],
)
def test_a_changed_source_is_refused(half: tuple[Path, Path], change: Callable[[Path], None], message: str) -> None:
    source, destination = half
    change(source)
    with pytest.raises(CheckpointError, match=message):
        convert(source, destination, OPTIONS, resume=True)


# ---- folders that cannot be written to -------------------------------------------------------------------------------


def test_source_and_destination_must_differ(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(small_model)
    before = tree(small_model)
    for destination in (small_model, tmp_path / "link", small_model / "." / ".." / small_model.name):
        with pytest.raises(CheckpointError, match="same folder"):
            convert(small_model, destination, OPTIONS, resume=True)
    assert tree(small_model) == before


def test_a_folder_with_something_in_it_is_refused(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="give a new folder"):
            convert(small_model, tmp_path, OPTIONS, resume=resume)
    with pytest.raises(CheckpointError, match="is no folder"):
        convert(small_model, tmp_path / "notes.txt", OPTIONS)


def test_a_destination_that_cannot_be_a_folder_is_refused(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("loop", "x" * 300, "loop/inner"):
        with pytest.raises(CheckpointError, match="cannot write"):
            convert(small_model, tmp_path / name, OPTIONS)


def test_what_is_named_like_a_file_of_ours_but_is_none(half: tuple[Path, Path], tmp_path: Path) -> None:
    source, destination = half
    (destination / "mine.tmp-1").mkdir()
    convert(source, destination, OPTIONS, resume=True)
    assert (destination / "mine.tmp-1").is_dir()
    other = tmp_path / "other"
    other.mkdir()
    os.mkfifo(other / LOCK_FILE)
    with pytest.raises(CheckpointError, match=r"\(.*seekable"):
        convert(source, other, OPTIONS)


def test_an_unfinished_conversion_is_refused_without_resume(half: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="--resume goes on"):
        convert(*half, OPTIONS)
    with pytest.raises(CheckpointError, match=r"cannot resume .*options.format was .*give the same options"):
        convert(*half, replace(OPTIONS, recipe=Recipe("bf16")))


def test_two_conversions_at_once_are_refused(half: tuple[Path, Path]) -> None:
    source, destination = half
    with (destination / LOCK_FILE).open("a+") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match=r"another conversion \(process 4711\)"):
            convert(source, destination, OPTIONS, resume=True)
    convert(source, destination, OPTIONS, resume=True)  # the lock of a process that is gone holds nobody up
    assert not (destination / LOCK_FILE).exists()


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match=r"needs \d\d\.\d MB, 1\.0 kB are free") as caught:
        convert(small_model, tmp_path / "out", OPTIONS)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_a_full_disk_has_no_room_for_a_lock(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        with pytest.raises(ResourceError, match=r"cannot write .*\.lock.*make room"), locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_hold_the_folders_is_told(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError, match=r"cannot write .*c: it needs 0 bytes, [\d.,]+ GB are free"):
        convert(small_model, tmp_path / "a" / "b" / "c", OPTIONS)


def test_a_disk_that_gets_full_leaves_finished_files(small_model: Path, tmp_path: Path) -> None:
    convert(small_model, tmp_path / "whole", OPTIONS)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "whole").glob("*.safetensors"))]
    too_large = next(i for i, size in enumerate(sizes) if i and size > max(sizes[:i]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes[:too_large]), hard))
        needed = shown_bytes(sizes[too_large])
        with pytest.raises(ResourceError, match=rf"needs {needed}, .* are free.*--resume") as caught:
            convert(small_model, tmp_path / "out", OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 4
    whole = [path.name for path in sorted((tmp_path / "whole").glob("*.safetensors"))]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {MANIFEST_FILE, *whole[:too_large]}
    convert(small_model, tmp_path / "out", OPTIONS, resume=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
