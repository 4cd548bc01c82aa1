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
    from deepzig.config import ModelConfig
    from deepzig.engine.llm import LLM, load
    from deepzig.engine.results import GenerationResult, StreamChunk, Timings
    from deepzig.engine.sampling import SamplingParams, TokenLogprob
    from deepzig.engine.trace import Trace

__version__ = "0.1.0"

_HOME = {
    "GenerationResult": "deepzig.engine.results",
    "LLM": "deepzig.engine.llm",
    "ModelConfig": "deepzig.config",
    "SamplingParams": "deepzig.engine.sampling",
    "StreamChunk": "deepzig.engine.results",
    "Timings": "deepzig.engine.results",
    "TokenLogprob": "deepzig.engine.sampling",
    "Trace": "deepzig.engine.trace",
    "load": "deepzig.engine.llm",
}

__all__ = [
    "LLM",
    "GenerationResult",
    "ModelConfig",
    "SamplingParams",
    "StreamChunk",
    "Timings",
    "TokenLogprob",
    "Trace",
    "__version__",
    "errors",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deepzig' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
