"""Progress, usage and timings of a request, as replies tell them. Called by `chat`, `completions` and `responses`."""

from collections.abc import Sequence

from deepzig.engine.results import GenerationResult, Progress
from deepzig.server.replies import CachedTokens, PromptProgress, ReasoningTokens, TimingsReply, Usage


def usage_of(results: Sequence[GenerationResult], reasoning_tokens: int = 0) -> Usage:
    """Tokens of all prompts of a request and of all their answers."""
    prompt = sum(result.timings.prompt_tokens for result in results)
    cached = sum(result.timings.cached_tokens for result in results)
    completion = sum(len(choice.token_ids) for result in results for choice in result.choices)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=CachedTokens(cached),
        completion_tokens_details=ReasoningTokens(reasoning_tokens),
        prompt_cache_hit_tokens=cached,
        prompt_cache_miss_tokens=prompt - cached,
    )


def timings_of(results: Sequence[GenerationResult]) -> TimingsReply:
    """Speed of prompt and answer; where several prompts ran together, of the longest of them."""
    prompt_s = max(result.timings.prompt_s for result in results)
    decode_s = max(result.timings.decode_s for result in results)
    cached = sum(result.timings.cached_tokens for result in results)
    read = sum(result.timings.prompt_tokens for result in results) - cached
    decoded = sum(result.timings.decode_tokens for result in results)
    return TimingsReply(
        cache_n=cached,
        prompt_n=read,
        prompt_ms=round(1000 * prompt_s, 3),
        prompt_per_second=_rate(read, prompt_s),
        predicted_n=decoded,
        predicted_ms=round(1000 * decode_s, 3),
        predicted_per_second=_rate(decoded, decode_s),
    )


def prompt_progress(progress: Progress, elapsed_s: float) -> PromptProgress:
    """The engine's progress in the shape of replies."""
    return PromptProgress(
        total=progress.prompt_tokens,
        cache=progress.cached_tokens,
        processed=progress.prompt_tokens_done,
        time_ms=round(1000 * elapsed_s),
        queue_position=progress.queue_position,
    )


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 3) if seconds > 0 else None
