"""Every exception that a user can meet, and how a message shows what came from a file, and sizes.

Called by every other package; calls nothing. Each message is one line: what happened, why, and what to do.

    DeepzigError                 1
    ├── ConfigError              3   config.json is missing, malformed, or asks for unknown arithmetic
    │   └── UnsupportedModelError 3  the model_type is none of the supported families
    ├── CheckpointError          3   a weight file is missing, truncated, inconsistent, or lacks a tensor
    ├── TokenizerError           3   tokenizer files are missing or malformed, or a chat template fails
    ├── RequestError             2   the caller asked for something impossible (also a ValueError)
    │   ├── ContextLengthError   2   prompt and answer do not fit the context
    │   └── QueueFullError       2   too many requests are waiting
    ├── ServerError              2   the server cannot be started as asked
    ├── ReportError              3   a file holds no results of a bench, or two cannot be compared
    ├── NetworkError             5   a hub or server cannot be reached, refuses, or has no such model
    ├── ClusterError             5   the machines of a cluster cannot be reached, do not suit, or are lost
    ├── KernelError              1   DEEPZIG_ISA or DEEPZIG_KERNEL forces what this machine cannot run
    ├── NonFiniteLogitsError     1   the model produced NaN or infinity
    └── ResourceError            4   not enough memory, disk or processes

The number is the exit code of the command line.
"""


class DeepzigError(Exception):
    """Base of all errors that deepzig raises on purpose."""

    exit_code = 1


class ConfigError(DeepzigError):
    """config.json cannot be used."""

    exit_code = 3


class UnsupportedModelError(ConfigError):
    """The checkpoint is of a model family that deepzig does not run."""


class CheckpointError(DeepzigError):
    """A weight file cannot be used."""

    exit_code = 3


class TokenizerError(DeepzigError):
    """Tokenizer files or chat template cannot be used."""

    exit_code = 3


class RequestError(DeepzigError, ValueError):
    """The caller's request cannot be served as it stands."""

    exit_code = 2


class ContextLengthError(RequestError):
    """The tokens of prompt and answer exceed the context."""


class QueueFullError(RequestError):
    """So many requests wait that no more are taken; the same one may be served later."""


class ServerError(DeepzigError):
    """The server cannot be started as asked."""

    exit_code = 2


class ReportError(DeepzigError):
    """Results of `deepzig bench` cannot be used."""

    exit_code = 3


class NetworkError(DeepzigError):
    """A model cannot be fetched, or a server does not answer."""

    exit_code = 5


class ClusterError(DeepzigError):
    """A model cannot be on several machines, or one of them is lost."""

    exit_code = 5


class KernelError(DeepzigError):
    """A forced kernel or ISA is not available here."""


class NonFiniteLogitsError(DeepzigError):
    """The logits contain NaN or infinity."""


class ResourceError(DeepzigError):
    """Memory, disk or the number of processes does not suffice."""

    exit_code = 4


def shown(value: object, most: int = 120) -> str:
    """`value`, which a file may have put there, escaped and shortened to `most` characters for a message."""
    text = repr(value[:most] if isinstance(value, str) else value)
    return text if len(text) <= most else text[: most - 3] + "..."


def shown_bytes(nbytes: int) -> str:
    """A size for a message."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:,.1f} {unit}"
    return f"{nbytes} bytes"
