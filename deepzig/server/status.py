"""/status: how busy the server is, for the page and for people. Called by `app`."""

import time
from typing import Any

from deepzig.server.service import Service


class Status:
    """Figures of now; speeds are those since the last question."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = time.monotonic()
        self._last = (self._started, 0, 0)  # when, tokens of prompts, tokens of answers

    def read(self) -> dict[str, Any]:
        """What /status replies."""
        service = self._service
        if not service.is_ready:
            return {"state": "loading", "uptime_s": self._uptime()}
        model = service.model
        stats = model.llm.stats()
        now = time.monotonic()
        then, prompt, decoded = self._last
        elapsed = now - then
        if elapsed >= 0.5:  # two pages that ask at once should not get zeros
            self._rates = (
                round((stats.tokens_prompt - prompt) / elapsed, 2),
                round((stats.tokens_decoded - decoded) / elapsed, 2),
            )
            self._last = (now, stats.tokens_prompt, stats.tokens_decoded)
        prompt_rate, decode_rate = getattr(self, "_rates", (0.0, 0.0))
        return {
            "state": "ready",
            "model": model.id,
            "context": model.n_context,
            "uptime_s": self._uptime(),
            "open": len(service.board),
            "running": stats.n_running,
            "queue": stats.n_waiting,
            "load": round(stats.n_running / max(stats.n_running + stats.n_waiting, 1), 3),
            "pages": {"total": stats.n_pages, "held": stats.n_held_pages, "prefix": stats.n_prefix_pages},
            "tokens_per_s": {"prompt": prompt_rate, "decode": decode_rate},
            "tokens": {"prompt": stats.tokens_prompt, "cached": stats.tokens_cached, "decoded": stats.tokens_decoded},
            "expert_load": None,
        }

    def _uptime(self) -> float:
        return round(time.monotonic() - self._started, 1)
