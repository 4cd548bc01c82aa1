"""From the checkpoint's tensors, which `checkpoint.names` lists, to modules. Called by `deepseek`."""

from deepzig._kernels.weight import ExpertWeights, Weight
from deepzig.checkpoint.loader import ModelWeights
from deepzig.config import ModelConfig
from deepzig.model.attention import Attention
from deepzig.model.decoder import DecoderLayer
from deepzig.model.linear import Linear
from deepzig.model.mlp import MLP
from deepzig.model.moe import MoE
from deepzig.model.mtp import MtpLayer
from deepzig.model.norm import RMSNorm

LATENT_NORM_EPS = 1e-6  # of q_a_layernorm and kv_a_layernorm, whatever rms_norm_eps says (HF, DeepSeek model.py)


class Assembler:
    """Makes modules from weights that the loader has checked to be there."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, n_threads: int) -> None:
        self._config, self._weights, self._n_threads = config, weights, n_threads

    def linear(self, path: str) -> Linear:
        """Linear layer at module path `path`, with its bias if it has one."""
        return Linear(self._weights.linear[path], self._weights.vector.get(f"{path}.bias"), self._n_threads)

    def norm(self, path: str, eps: float) -> RMSNorm:
        """RMSNorm at module path `path`."""
        return RMSNorm(self._weights.vector[f"{path}.weight"], eps, self._n_threads)

    def decoder_layer(self, layer: int, cache_layer: int) -> DecoderLayer:
        """Decoder layer `layer`, whose latents are layer `cache_layer` of the cache; past the last are MTP layers."""
        path, eps = f"model.layers.{layer}", self._config.rms_norm_eps
        mlp = self._moe(f"{path}.mlp") if self._config.is_moe_layer(layer) else self._mlp(f"{path}.mlp")
        return DecoderLayer(
            self._attention(f"{path}.self_attn", cache_layer),
            mlp,
            self.norm(f"{path}.input_layernorm", eps),
            self.norm(f"{path}.post_attention_layernorm", eps),
        )

    def mtp_layer(self, layer: int, cache_layer: int) -> MtpLayer:
        """MTP layer `layer`; embedding and head are the main model's where the checkpoint has no copies."""
        path, eps = f"model.layers.{layer}", self._config.rms_norm_eps
        head = f"{path}.shared_head.head"
        return MtpLayer(
            self.norm(f"{path}.enorm", eps),
            self.norm(f"{path}.hnorm", eps),
            self.linear(f"{path}.eh_proj"),
            self.decoder_layer(layer, cache_layer),
            self.norm(f"{path}.shared_head.norm", eps),
            self.linear(head if head in self._weights.linear else "lm_head"),
        )

    def _attention(self, path: str, cache_layer: int) -> Attention:
        has_q_lora = self._config.q_lora_rank is not None
        return Attention(
            self._config,
            cache_layer,
            None if has_q_lora else self.linear(f"{path}.q_proj"),
            self.linear(f"{path}.q_a_proj") if has_q_lora else None,
            self.norm(f"{path}.q_a_layernorm", LATENT_NORM_EPS) if has_q_lora else None,
            self.linear(f"{path}.q_b_proj") if has_q_lora else None,
            self.linear(f"{path}.kv_a_proj_with_mqa"),
            self.norm(f"{path}.kv_a_layernorm", LATENT_NORM_EPS),
            self.linear(f"{path}.kv_b_proj"),
            self.linear(f"{path}.o_proj"),
            self._n_threads,
        )

    def _mlp(self, path: str) -> MLP:
        gate, up, down = (self.linear(f"{path}.{name}") for name in ("gate_proj", "up_proj", "down_proj"))
        return MLP(gate, up, down, self._n_threads)

    def _moe(self, path: str) -> MoE:
        config = self._config

        def experts(name: str) -> list[Weight]:
            return [self._weights.linear[f"{path}.experts.{i}.{name}"] for i in range(config.n_routed_experts)]

        return MoE(
            config,
            self.linear(f"{path}.gate"),
            self._weights.vector.get(f"{path}.gate.e_score_correction_bias"),
            ExpertWeights(experts("gate_proj"), experts("up_proj"), experts("down_proj")),
            self._mlp(f"{path}.shared_experts") if config.n_shared_experts else None,
            self._n_threads,
        )
