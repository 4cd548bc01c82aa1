"""Tokens and speeds of an answer, as a line for people. Called by `generate` and `chat`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepzig.engine.results import GenerationResult


def statistics_line(result: "GenerationResult") -> str:
    """Tokens and speed of the prompt and of the answer, for people."""
    timings = result.timings
    new_tokens = timings.prompt_tokens - timings.cached_tokens
    return (
        f"prompt {timings.prompt_tokens} tokens, {_rate(new_tokens, timings.prompt_s)}; "
        f"first token after {timings.first_token_s:.2f} s; "
        f"answer {len(result.token_ids)} tokens, {_rate(timings.decode_tokens, timings.decode_s)}"
        + (f"; {result.n_shifted} old tokens dropped" if result.n_shifted else "")
    )


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tok/s" if seconds > 0 else "- tok/s"
