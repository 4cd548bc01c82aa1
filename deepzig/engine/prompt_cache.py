"""PromptCache: cached prefixes in a file, so that a later run need not prefill the same prompts again.

The file holds the pages of the prefix tree of requests without a tenant (what a server's keys have sent is not for
others). Each model and way of computing has a file of its own, which states what it is made for. It is written when the
model is closed and read when it is loaded, strictly: if anything is wrong with it, the file is ignored with a warning.
Called by `engine`; calls `scheduler`, `prefix`, `pages`, the cache, and reader and writer of safetensors.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from deepzig.checkpoint.reader import SafetensorsFile
from deepzig.checkpoint.safe_files import room_errors
from deepzig.checkpoint.writer import SafetensorsWriter
from deepzig.engine.pages import PagePool
from deepzig.engine.prefix import PrefixTree, SavedPage
from deepzig.engine.scheduler import Scheduler
from deepzig.errors import CheckpointError, DeepzigError, shown
from deepzig.model.cache import PAGE_SIZE, LatentCache

VERSION = "1"
EXPORTED_PAGES = 16  # of the cache that are copied at a time

_SPELLED = {"int32": "I32", "float32": "F32", "int8": "I8"}  # dtypes of the arrays, as safetensors has them


class PromptCache:
    """A file of a folder, for the prefix tree and the cache of one loaded model."""

    def __init__(
        self, directory: Path, made_for: Mapping[str, str], scheduler: Scheduler, cache: LatentCache, vocab_size: int
    ) -> None:
        """made_for: all that the rows depend on, by name: `hash_of_model` and how the model computes.

        Raises:
            CheckpointError, ResourceError: the folder cannot be made.
        """
        with room_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        self._made_for = dict(made_for)
        self._scheduler, self._cache, self._vocab_size = scheduler, cache, vocab_size
        digest = hashlib.sha256(json.dumps(self._made_for, sort_keys=True).encode()).hexdigest()
        # absolute: it is written later, perhaps from another working directory
        self.path = directory.absolute() / f"deepzig-prompts-{digest[:12]}.safetensors"
        self._n_inserted = 0  # of the tree, when file and tree were last the same

    def load(self) -> None:
        """Put the file's pages into the prefix tree, at most half of the cache.

        A file that is damaged or made for something else is a RuntimeWarning, and nothing of it is used.
        """
        if os.path.exists(self.path):  # no exception where a folder may not be searched
            try:
                self._restore(self._read())
            except CheckpointError as error:
                warnings.warn(f"prompt cache ignored: {error}", RuntimeWarning, stacklevel=3)
        self._n_inserted = self._scheduler.prefixes.n_inserted

    def save(self) -> None:
        """Write the tree, if it has changed, and what else the file has; all or nothing. A full or read-only disk, or a
        lost machine, is a RuntimeWarning.

        Saves at most half of the cache, or as many pages as the file has: those used last, of this run first.
        """
        prefixes, most = self._scheduler.prefixes, self._scheduler.pool.n_pages // 2
        saved = prefixes.saved_pages("", most)
        if not saved or prefixes.n_inserted == self._n_inserted:
            return
        try:
            with self._alone():
                self._write(_merged(self._stored(), saved, most, self._cache))
        except DeepzigError as error:
            warnings.warn(f"prompt cache not saved: {error}", RuntimeWarning, stacklevel=3)
        else:
            self._n_inserted = prefixes.n_inserted

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Make others that save to this folder wait, so that nothing they add is lost; no lock where the folder cannot
        be locked."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                folder = os.open(self.path.parent, os.O_RDONLY)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield

    def _stored(self) -> dict[str, np.ndarray]:
        """The arrays of the file as it is now: others may have written it. No pages if it cannot be used."""
        if os.path.exists(self.path):
            with contextlib.suppress(CheckpointError):  # of which `load` has warned; it is replaced
                return self._read()
        return {name: np.empty(shape, dtype) for name, (dtype, shape) in _expected_arrays(self._cache, 0).items()}

    def _write(self, arrays: dict[str, np.ndarray]) -> None:
        metadata = {"deepzig_prompts": VERSION, "sha256": _checksum(arrays), "made_for": json.dumps(self._made_for)}
        entries = [(name, _SPELLED[array.dtype.name], array.shape) for name, array in arrays.items()]
        with SafetensorsWriter(self.path, entries, metadata) as writer:
            for name in writer.order:
                writer.write(name, arrays[name])

    def _read(self) -> dict[str, np.ndarray]:
        """The file's arrays, checked. Raises CheckpointError that says what is wrong."""
        try:
            file = SafetensorsFile(self.path)
        except CheckpointError as error:  # its advice is for a model's files
            reason, _, _ = str(error).rpartition("; ")
            raise CheckpointError(f"{reason}; delete it") from error
        if file.metadata.get("deepzig_prompts") != VERSION:
            raise CheckpointError(f"{self.path} is no prompt cache of version {VERSION}; delete it")
        self._check_made_for(file.metadata.get("made_for", ""))
        n_pages = file.tensors["n_tokens"].nbytes // 4 if "n_tokens" in file.tensors else 0
        expected = _expected_arrays(self._cache, n_pages)
        found = {name: (np.dtype(file.array(name).dtype), file.array(name).shape) for name in file.tensors}
        if found != expected:
            raise CheckpointError(f"{self.path} holds other arrays than a prompt cache has; delete it")
        arrays = {name: file.array(name) for name in sorted(expected)}
        if _checksum(arrays) != file.metadata.get("sha256"):
            raise CheckpointError(f"{self.path} is damaged: its hash differs; delete it")
        _check_tree(arrays, self._vocab_size, self.path)
        return arrays

    def _check_made_for(self, stored: str) -> None:
        try:
            made_for = json.loads(stored)
        except (ValueError, RecursionError):
            made_for = None
        if not isinstance(made_for, dict):
            raise CheckpointError(f"{self.path} does not say for which model it was made; delete it")
        names = [*self._made_for, *made_for]  # what only the file names counts too
        differing = [name for name in names if made_for.get(name) != self._made_for.get(name)]
        if differing:
            name = differing[0]
            raise CheckpointError(
                f"{self.path} was made for another {name}, {shown(made_for.get(name))}; it will be replaced"
            )

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        pool = self._scheduler.pool
        saved: list[SavedPage] = []
        for stored in _pages_of(arrays):
            page = pool.take() if pool.n_free > pool.n_pages // 2 else None
            if page is None:
                break
            self._cache.import_page(page, arrays, stored.page)
            saved.append(stored._replace(page=page))
        self._scheduler.prefixes.restore("", saved)
        for each in saved:
            pool.release(each.page)  # the tree holds it now


def _merged(
    stored: Mapping[str, np.ndarray], saved: Sequence[SavedPage], most: int, cache: LatentCache
) -> dict[str, np.ndarray]:
    """Arrays of a file with pages of the tree, then the other pages of `stored`."""
    n_stored = len(stored["parents"])
    pool = PagePool(n_stored + len(saved))  # a page is a place in stored, then one in saved
    for _ in range(pool.n_pages):
        pool.take()
    tree = PrefixTree(pool)
    tree.restore("", _pages_of(stored))
    tree.restore("", _finite(saved, cache, n_stored))
    chosen = tree.saved_pages("", max(most, n_stored))
    empty = cache.export_pages([])
    merged = {name: np.empty((len(chosen), *rows.shape[1:]), rows.dtype) for name, rows in empty.items()}
    places: list[int] = []  # of pages from the cache
    for place, (_, page, _) in enumerate(chosen):
        if page >= n_stored:
            places.append(place)
            continue
        for name, rows in merged.items():
            rows[place] = stored[name][page]
    for first, exported in _exported([saved[chosen[place].page - n_stored] for place in places], cache):
        for name, rows in exported.items():
            merged[name][places[first : first + len(rows)]] = rows
    return _tree_arrays(chosen) | merged


def _exported(saved: Sequence[SavedPage], cache: LatentCache) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The rows of pages, a few at a time, since all may be gigabytes: the first one's place, and arrays of
    `export_pages`. 0 where no token is: a request that failed may have left NaN there."""
    for first in range(0, len(saved), EXPORTED_PAGES):
        few = saved[first : first + EXPORTED_PAGES]
        rows = cache.export_pages([each.page for each in few])
        n_tokens = np.array([len(each.tokens) for each in few])
        is_free = np.arange(PAGE_SIZE) >= n_tokens[:, None]  # (n, PAGE_SIZE)
        for array in rows.values():  # (n, n_layers, PAGE_SIZE, ...)
            array.swapaxes(1, 2)[is_free] = 0
        yield first, rows


def _finite(saved: Sequence[SavedPage], cache: LatentCache, first_page: int) -> list[SavedPage]:
    """Pages whose rows, and those before them, are finite, numbered from `first_page` on. Nobody has checked the rows
    of a request that was cancelled in its prompt."""
    places = {-1: -1}  # among saved -> among those that are finite
    finite: list[SavedPage] = []
    for first, rows in _exported(saved, cache):
        floats = [array for array in rows.values() if array.dtype == np.float32]
        for index, each in enumerate(saved[first : first + EXPORTED_PAGES], first):
            if each.parent in places and all(np.isfinite(array[index - first]).all() for array in floats):
                places[index] = len(finite)
                finite.append(SavedPage(each.tokens, first_page + index, places[each.parent]))
    return finite


def _tree_arrays(saved: Sequence[SavedPage]) -> dict[str, np.ndarray]:
    """The arrays that say which tokens are where; `_pages_of` reads them."""
    tokens = np.zeros((len(saved), PAGE_SIZE), np.int32)
    for row, each in zip(tokens, saved, strict=True):
        row[: len(each.tokens)] = each.tokens
    return {
        "n_tokens": np.array([len(each.tokens) for each in saved], np.int32),
        "parents": np.array([each.parent for each in saved], np.int32),
        "tokens": tokens,
    }


def _pages_of(arrays: Mapping[str, np.ndarray]) -> list[SavedPage]:
    """The pages of a file, each numbered by its place in the arrays."""
    described = zip(arrays["tokens"].tolist(), arrays["n_tokens"].tolist(), arrays["parents"].tolist(), strict=True)
    return [SavedPage(tuple(row[:n]), page, parent) for page, (row, n, parent) in enumerate(described)]


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the arrays in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _expected_arrays(cache: LatentCache, n_pages: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape of each array of a file with n_pages."""
    of_tree = {
        "n_tokens": (np.dtype(np.int32), (n_pages,)),
        "parents": (np.dtype(np.int32), (n_pages,)),
        "tokens": (np.dtype(np.int32), (n_pages, PAGE_SIZE)),
    }
    empty = cache.export_pages([])
    return of_tree | {name: (array.dtype, (n_pages, *array.shape[1:])) for name, array in empty.items()}


def _check_tree(arrays: dict[str, np.ndarray], vocab_size: int, path: Path) -> None:
    """Raise CheckpointError unless parents come first and are whole pages, and all tokens and rows can be used."""
    n_tokens, parents, tokens = arrays["n_tokens"], arrays["parents"], arrays["tokens"]
    is_child = parents >= 0
    sound = (
        ((n_tokens >= 1) & (n_tokens <= PAGE_SIZE)).all()
        and (parents >= -1).all()
        and (parents < np.arange(len(parents))).all()
        and (n_tokens[parents[is_child]] == PAGE_SIZE).all()
        and ((tokens >= 0) & (tokens < vocab_size)).all()
        and all(np.isfinite(array).all() for array in arrays.values() if array.dtype == np.float32)
    )
    if not sound:
        raise CheckpointError(f"{path} holds impossible values; delete it")
