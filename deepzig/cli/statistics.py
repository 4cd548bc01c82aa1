"""Tokens and speeds of an answer, for people. Called by `generate`, `chat` and `chat_commands`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepzig.engine.results import Timings


def statistics_line(timings: "Timings", n_tokens: int, n_dropped: int, cut_at: int | None) -> str:
    """Tokens and speed of the prompt and of an answer of n_tokens; cut_at: --max-tokens, if that ended it."""
    new_tokens = timings.prompt_tokens - timings.cached_tokens
    return (
        f"prompt {timings.prompt_tokens} tokens, "
        + (f"{timings.cached_tokens} cached, " if timings.cached_tokens else "")
        + f"{rate(new_tokens, timings.prompt_s)}; first token after {timings.first_token_s:.2f} s; "
        f"answer {n_tokens} tokens, {rate(timings.decode_tokens, timings.decode_s)}"
        + (f"; {n_dropped} old tokens dropped" if n_dropped else "")
        + (f"; cut at --max-tokens {cut_at}" if cut_at is not None else "")
    )


def rate(tokens: int, seconds: float) -> str:
    """Tokens a second."""
    return f"{tokens / seconds:.1f} tok/s" if seconds > 0 else "- tok/s"
