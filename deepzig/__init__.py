"""deepzig: DeepSeek-V3-family language models on CPUs.

    llm = deepzig.load("stories")
    print(llm.generate("Once upon a time", deepzig.SamplingParams(max_tokens=64)).text)

This module is the public interface and nothing else; no module of the package imports it. Names are loaded when they
are first used, so that `deepzig --help` does not wait for NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepzig import errors

if TYPE_CHECKING:
    from deepzig.checkpoint.loader import ExtraTensorsWarning
    from deepzig.config import ModelConfig
    from deepzig.distributed.loading import load_distributed
    from deepzig.engine.generation import Generation
    from deepzig.engine.llm import LLM
    from deepzig.engine.loading import load
    from deepzig.engine.memory_need import StreamingWarning
    from deepzig.engine.results import Choice, EngineStats, GenerationResult, Progress, StreamChunk, Timings
    from deepzig.engine.sampling import SamplingParams, TokenConstraint, TokenLogprob
    from deepzig.engine.trace import Trace

__version__ = "0.1.0"

_HOME = {
    "Choice": "deepzig.engine.results",
    "EngineStats": "deepzig.engine.results",
    "ExtraTensorsWarning": "deepzig.checkpoint.loader",
    "Generation": "deepzig.engine.generation",
    "GenerationResult": "deepzig.engine.results",
    "LLM": "deepzig.engine.llm",
    "ModelConfig": "deepzig.config",
    "Progress": "deepzig.engine.results",
    "SamplingParams": "deepzig.engine.sampling",
    "StreamChunk": "deepzig.engine.results",
    "StreamingWarning": "deepzig.engine.memory_need",
    "Timings": "deepzig.engine.results",
    "TokenConstraint": "deepzig.engine.sampling",
    "TokenLogprob": "deepzig.engine.sampling",
    "Trace": "deepzig.engine.trace",
    "load": "deepzig.engine.loading",
    "load_distributed": "deepzig.distributed.loading",
}

__all__ = [
    "LLM",
    "Choice",
    "EngineStats",
    "ExtraTensorsWarning",
    "Generation",
    "GenerationResult",
    "ModelConfig",
    "Progress",
    "SamplingParams",
    "StreamChunk",
    "StreamingWarning",
    "Timings",
    "TokenConstraint",
    "TokenLogprob",
    "Trace",
    "__version__",
    "errors",
    "load",
    "load_distributed",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deepzig' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
