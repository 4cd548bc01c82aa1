"""Service: what all routes share: settings, the model once it is loaded, the runs, the metrics. Made by `cli.serve`."""

import threading
from collections.abc import Callable

from deepzig.engine.expert_counter import ExpertCounter
from deepzig.engine.llm import LLM
from deepzig.engine.results import EngineStats
from deepzig.server.failures import ApiError, shutting_down
from deepzig.server.metrics import Metrics
from deepzig.server.run import RunRegistry
from deepzig.server.served_model import ServedModel
from deepzig.server.settings import ServerSettings


class Service:
    """State of one server."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics(self._stats, lambda: len(self.runs))
        self.runs = RunRegistry(self.metrics)
        self.is_draining = False  # shutting down: what runs may end, nothing new begins
        self.load_failure: BaseException | None = None
        self.expert_counter: ExpertCounter | None = None  # counted if the settings say so
        self._model: ServedModel | None = None

    def load(
        self,
        load_llm: Callable[[], LLM],
        model_id: str | None,
        *,
        on_ready: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        """Load the model in a thread of its own; the server answers 503 until it is there."""

        def run() -> None:
            try:
                self.serve(ServedModel.of(load_llm(), model_id, self.settings.reasoning_format))
                on_ready()
            except BaseException as error:
                self.load_failure = error
                on_failure()

        threading.Thread(target=run, name="load", daemon=True).start()

    def serve(self, model: ServedModel) -> None:
        """Take a model that is loaded already."""
        if self.settings.expert_load:
            self.expert_counter = model.llm.count_experts()
        self._model = model

    @property
    def is_ready(self) -> bool:
        """The model is loaded."""
        return self._model is not None

    @property
    def model(self) -> ServedModel:
        """The model. Raises ApiError 503 while it loads or when the server shuts down."""
        if self.is_draining:
            raise shutting_down()
        return self.loaded

    @property
    def loaded(self) -> ServedModel:
        """The model, for whoever starts nothing with it. Raises ApiError 503 while it loads."""
        if self._model is None:
            raise ApiError(503, "Loading model", code="loading", retry_after=5)
        return self._model

    def model_named(self, name: str | None) -> ServedModel:
        """The model, if that is what the client means. Raises ApiError 404 for another name."""
        model = self.model
        if name and name != model.id:
            message = f"the model {name!r:.200} is not served here; there is {model.id!r}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return model

    def cut(self) -> None:
        """End all that runs; its clients are told why."""
        self.runs.close(shutting_down())

    def close(self) -> None:
        """End the engine."""
        if self._model is not None:
            self._model.llm.close()

    def _stats(self) -> EngineStats | None:
        return None if self._model is None else self._model.llm.last_stats
