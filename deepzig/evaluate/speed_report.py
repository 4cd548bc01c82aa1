"""The report on the speed of a model: figures of decoding beside the bytes that a token reads and the memory's speed.

Called by `deepzig bench`; calls `reports`, `machine`, and `checkpoint` for sizes. Measures nothing but the memory.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.sizes import count_parameters
from deepzig.engine.llm import LLM
from deepzig.engine.memory_need import bytes_read_per_token
from deepzig.evaluate.figures import Figure
from deepzig.evaluate.machine import describe_machine, describe_software
from deepzig.evaluate.read_speed import read_bandwidth
from deepzig.evaluate.reports import Report, new_report
from deepzig.evaluate.speed import SpeedTest


class SpeedRun:
    """A bench of a loaded model: its samples so far, and the memory's speed before and after."""

    def __init__(self, llm: LLM, settings: Mapping[str, Any]) -> None:
        self.samples: dict[SpeedTest, list[float]] = {}  # tokens a second
        self._llm, self._settings = llm, dict(settings)
        self._bandwidth = read_bandwidth(llm.model.n_threads)  # bytes a second

    def finish(self) -> Report:
        """The report, with the better of the memory's speeds before and now."""
        self._bandwidth = max(self._bandwidth, read_bandwidth(self._llm.model.n_threads))
        return self.report(is_complete=True)

    def report(self, *, is_complete: bool) -> Report:
        """The report on the samples so far."""
        return new_report(
            "deepzig bench",
            machine={**describe_machine(), "threads": self._llm.model.n_threads, **describe_software()},
            model=self._describe_model(),
            settings=self._settings,
            figures=[self._figure(test, rates) for test, rates in self.samples.items()],
            beside={"read_bandwidth": round(self._bandwidth)},
            is_complete=is_complete,
        )

    def _figure(self, test: SpeedTest, rates: list[float]) -> Figure:
        """Decoding one sequence reads all that is active for each token; of several, experts serve some together."""
        details: dict[str, str | int | float] = asdict(test)
        figure = Figure(test.name, "tok/s", rates, details=details)
        if test.kind == "decode" and test.concurrency == 1:
            middle = test.depth + test.n_prompt + test.n_tokens // 2
            n_bytes = bytes_read_per_token(self._llm.config, self._llm.size, middle, self._settings["cache_dtype"])
            details |= {"bytes_per_token": n_bytes, "share_of_read": figure.mean * n_bytes / self._bandwidth}
        return figure

    def _describe_model(self) -> dict[str, Any]:
        return {
            "name": self._llm.name,
            "model_type": self._llm.config.model_type,
            "parameters": count_parameters(self._llm.config).total,
            "bytes": sum(path.stat().st_size for path in open_checkpoint(self._llm.directory).files),
            "formats": dict(self._llm.size.by_format.most_common()),
        }
