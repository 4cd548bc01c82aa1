"""GenerationDefaults: the parameters in generation_config.json, for what a request leaves out. Made by `loading`."""

from dataclasses import dataclass, replace
from pathlib import Path

from deepzig.config import MAX_CONFIG_BYTES, ModelConfig, end_tokens
from deepzig.engine.sampling import SamplingParams
from deepzig.errors import ConfigError, RequestError
from deepzig.small_files import read_json_object

# Below these float32 runs out of digits, and only the likeliest token is left anyway.
MIN_TEMPERATURE = 1e-4
MIN_TOP_P = 1e-6


@dataclass(frozen=True)
class GenerationDefaults:
    """A model's own sampling parameters and end-of-sequence tokens."""

    eos_token_ids: frozenset[int]  # any of them ends an answer
    temperature: float = 1.0  # as in `SamplingParams`
    top_k: int = 0  # as in `SamplingParams`
    top_p: float = 1.0  # as in `SamplingParams`

    @classmethod
    def from_directory(cls, directory: Path, config: ModelConfig) -> "GenerationDefaults":
        """Read generation_config.json, if there is one. Raises ConfigError when it is unusable."""
        path = directory / "generation_config.json"
        raw = read_json_object(path, MAX_CONFIG_BYTES, ConfigError) if path.exists() else {}
        given = {name: raw[name] for name in ("temperature", "top_k", "top_p") if raw.get(name) is not None}
        try:
            SamplingParams(**given)
        except RequestError as error:
            raise ConfigError(f"{path}: {error}; mend or delete the file") from error
        eos_token_ids = end_tokens(raw.get("eos_token_id"), str(path)) or config.eos_token_ids
        return cls(frozenset(eos_token_ids), **given)

    def resolve(self, params: SamplingParams) -> SamplingParams:
        """`params` with the model's values in place of None. If they leave hardly more than one token, they leave
        exactly one."""
        temperature = self.temperature if params.temperature is None else params.temperature
        top_k = self.top_k if params.top_k is None else params.top_k
        top_p = self.top_p if params.top_p is None else params.top_p
        if temperature < MIN_TEMPERATURE:
            temperature = 0.0
        if top_p < MIN_TOP_P:
            top_k, top_p = 1, 1.0
        return replace(params, temperature=temperature, top_k=top_k, top_p=top_p)
