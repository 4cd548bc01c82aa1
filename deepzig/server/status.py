"""/status: how busy the server is, for the page and for people. Called by `app`."""

import time
from typing import Any

from deepzig.server.service import Service


class Status:
    """Figures of now; speeds are those between the last two questions that are some time apart."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = self._asked = time.monotonic()
        self._tokens = (0, 0)  # of prompts and answers, when it was last asked
        self._speeds = (0.0, 0.0)  # the same, a second

    def read(self) -> dict[str, Any]:
        """What /status replies."""
        service = self._service
        uptime = round(time.monotonic() - self._started, 1)
        if not service.is_ready:
            return {"state": "loading", "uptime_s": uptime}
        model = service.loaded
        stats = model.llm.last_stats
        self._update_speeds((stats.prompt_tokens, stats.answer_tokens))
        return {
            "state": "draining" if service.is_draining else "ready",
            "model": model.id,
            "context": model.n_context,
            "uptime_s": uptime,
            "open": len(service.runs),
            "running": stats.n_running,
            "queue": stats.n_waiting,
            "load": round(stats.n_held_pages / max(stats.n_pages, 1), 4),  # of the cache
            "pages": {"total": stats.n_pages, "held": stats.n_held_pages, "prefix": stats.n_prefix_pages},
            "tokens_per_s": {"prompt": self._speeds[0], "decode": self._speeds[1]},
            "tokens": {"prompt": stats.prompt_tokens, "cached": stats.cached_tokens, "decoded": stats.answer_tokens},
            "speculation": {"drafted": stats.drafted_tokens, "accepted": stats.accepted_tokens},
            "finished": dict(stats.finished),
            "expert_load": self._expert_load(),
        }

    def _update_speeds(self, tokens: tuple[int, int]) -> None:
        now = time.monotonic()
        elapsed = now - self._asked
        if elapsed >= 0.5:  # two pages that ask at once should not get zeros
            prompt, decode = (round((new - old) / elapsed, 2) for new, old in zip(tokens, self._tokens, strict=True))
            self._speeds, self._tokens, self._asked = (prompt, decode), tokens, now

    def _expert_load(self) -> list[dict[str, Any]] | None:
        """Choices of each expert by layer; None where they are not counted."""
        counter = self._service.expert_counter
        if counter is None:
            return None
        return [{"layer": layer, "counts": counts.tolist()} for layer, counts in counter.counts().items()]
