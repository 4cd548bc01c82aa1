"""What HF transformers computes from the golden checkpoints: fp32, eager attention, CPU.

Called by make_golden.py and make_golden_beams.py with tensors of golden_weights.py. Knows nothing of deepzig.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_weights import Case
from safetensors.torch import save_file
from transformers import DeepseekV2ForCausalLM, DeepseekV3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

N_GREEDY = 24
# of HF; its default for experts, grouped_mm, refuses rows that are no multiple of 16 bytes
REFERENCE_ARITHMETIC: dict[str, Any] = {
    "dtype": torch.float32,
    "attn_implementation": "eager",
    "experts_implementation": "eager",
}

# A case is kept only if nothing in it hangs on the last bits of a sum; else the next seed is tried.
MIN_LOGIT_MARGIN = 2e-3  # best to second-best logit, at every greedy step
MIN_ROUTING_MARGIN = 1e-4  # last chosen to first rejected expert or group, for every token and layer
MIN_DISTINCT_TOKENS = 12  # of the 24 greedy ones


class Unsuitable(Exception):
    """The weights of this seed give a near tie or a degenerate text."""


def load_reference(c: dict[str, Any], decoded: dict[str, torch.Tensor], scratch: Path) -> Any:
    """HF's model in fp32, made from the decoded tensors; raises if a tensor is missing, left over or changed."""
    config = {k: v for k, v in c.items() if k not in ("quantization_config", "auto_map")}
    config["model_type"] = c["model_type"].replace("kimi_k2", "deepseek_v3")  # HF has no kimi_k2; it is deepseek_v3
    scratch.joinpath("config.json").write_text(json.dumps(config))
    save_file(decoded, scratch / "model.safetensors", metadata={"format": "pt"})
    cls: Any = DeepseekV2ForCausalLM if c["model_type"] == "deepseek_v2" else DeepseekV3ForCausalLM
    # HF looks for the MTP layer under this pattern, which by default names layer 61 only
    cls._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{c['num_hidden_layers']}\..*"]
    model, info = cls.from_pretrained(scratch, **REFERENCE_ARITHMETIC, output_loading_info=True)
    if any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise ValueError(f"HF did not take the checkpoint as it is: {info}")
    mtp_prefix = f"model.layers.{c['num_hidden_layers']}."
    check_same_weights(model, {n: t for n, t in decoded.items() if not n.startswith(mtp_prefix)})
    return model


def check_same_weights(model: torch.nn.Module, decoded: dict[str, torch.Tensor]) -> None:
    """Raise unless the model's fp32 state is exactly the decoded tensors, each used once."""
    left = dict(decoded)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and name not in decoded:
            want = decoded["model.embed_tokens.weight"]
        elif name.endswith("experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            pairs = [[left.pop(f"{base}{e}.{p}_proj.weight") for p in ("gate", "up")] for e in range(len(value))]
            want = torch.stack([torch.cat(pair) for pair in pairs])
        elif name.endswith("experts.down_proj"):
            base = name.removesuffix("down_proj")
            want = torch.stack([left.pop(f"{base}{e}.down_proj.weight") for e in range(len(value))])
        else:
            want = left.pop(name)
        if value.dtype != torch.float32 or not torch.equal(value, want):
            raise ValueError(f"{name} of the HF model differs from the file")
    if left:
        raise ValueError(f"not used by the HF model: {sorted(left)}")


@contextmanager
def recorded(modules: list[torch.nn.Module]) -> Iterator[list[Any]]:
    """Inside the block, each call of one of `modules` appends (first input, output) to the list."""
    calls: list[Any] = []
    hooks = [m.register_forward_hook(lambda _m, args, out: calls.append((args[0], out))) for m in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def check_routing(gates: list[Any], calls: list[Any]) -> None:
    """Raise Unsuitable if a token's choice of groups or experts is nearly a tie (margins in units of the scores)."""
    for gate, (_, (router_logits, _, _)) in zip(gates, calls, strict=True):
        grouped = getattr(gate, "topk_method", "noaux_tc") != "greedy"
        if isinstance(getattr(gate, "e_score_correction_bias", None), torch.Tensor):
            scores = router_logits.sigmoid() + gate.e_score_correction_bias
            per_group = scores.unflatten(-1, (gate.num_group, -1)).topk(2).values.sum(-1)
        else:
            scores = router_logits.softmax(-1)
            per_group = scores.unflatten(-1, (gate.num_group, -1)).amax(-1) if grouped else scores
        if grouped:
            check_margin(per_group, gate.topk_group)
            kept = torch.zeros_like(per_group).scatter_(1, per_group.topk(gate.topk_group).indices, 1).bool()
            scores = scores.unflatten(-1, (gate.num_group, -1)).masked_fill(~kept[..., None], -torch.inf).flatten(1)
        check_margin(scores, gate.top_k)


def check_margin(scores: torch.Tensor, k: int) -> None:
    """scores f32 (T, n): raise Unsuitable if the k-th and (k+1)-th best are close in any row."""
    if k < scores.shape[-1]:
        best = scores.topk(k + 1).values
        if (best[:, k - 1] - best[:, k]).min() < MIN_ROUTING_MARGIN:
            raise Unsuitable("routing")


def moe_gates(layers: Any) -> list[Any]:
    """The routers of the layers that have one, in order."""
    return [layer.mlp.gate for layer in layers if hasattr(layer.mlp, "gate")]


def greedy_tokens(model: Any, ids: torch.Tensor, n_tokens: int, min_margin: float) -> torch.Tensor:
    """int64 (n_tokens,) argmax continuation of ids (1, T), whole sequence recomputed at each step, EOS ignored."""
    sequence = ids
    for _ in range(n_tokens):
        best = model(sequence, use_cache=False).logits[0, -1].topk(2)
        if best.values[0] - best.values[1] < min_margin:
            raise Unsuitable("greedy")
        sequence = torch.cat([sequence, best.indices[:1][None]], dim=1)
    return sequence[0, ids.shape[1] :]


def mtp_logits(model: Any, ids: torch.Tensor, final_norm: torch.Tensor) -> torch.Tensor:
    """f32 (T-1, vocab): row t is HF's MTP layer on (final_norm of token t, embedding of token t+1), as README says."""
    mtp: Any = MtpModel.from_pretrained(model)
    position_ids = torch.arange(1, ids.shape[1])[None]  # of the token that is embedded, as HF's generate passes them
    gates = [mtp.layers[0].mtp_block.mlp.gate]
    with recorded(gates) as routed:
        hidden = mtp.forward_layer(
            0, final_norm[None, :-1], position_ids, MtpCache(config=model.config.get_mtp_config()), input_ids=ids[:, 1:]
        )
    check_routing(gates, routed)
    logits: torch.Tensor = mtp._project_to_logits(hidden)[0]
    return logits


def expectations(model: Any, case: Case, seed: int) -> dict[str, Any]:
    """The arrays of expected.npz, as its README lists them. Raises Unsuitable if they hang on rounding."""
    rng = np.random.default_rng(seed + 1_000_000)
    ids = torch.from_numpy(rng.integers(0, model.config.vocab_size, (1, case.n_prompt)))
    layers, gates = list(model.model.layers), moe_gates(model.model.layers)
    greedy = greedy_tokens(model, ids, N_GREEDY, MIN_LOGIT_MARGIN)
    if len(set(greedy.tolist())) < MIN_DISTINCT_TOKENS:
        raise Unsuitable("degenerate text")
    with recorded(gates) as routed:
        model(torch.cat([ids, greedy[None]], dim=1), use_cache=False)
    check_routing(gates, routed)
    with recorded(layers) as layer_calls, recorded(gates) as routed, recorded([model.model.norm]) as normed:
        logits = model(ids, use_cache=False).logits[0]
    topk_idx = torch.stack([idx for _, (_, _, idx) in routed])  # (n_moe_layers, T, K)
    topk_idx, order = topk_idx.sort(dim=-1)
    hidden = [layer_calls[0][0][0]] + [out[0] for _, out in layer_calls]
    arrays = {
        "ids": ids[0],
        "hidden": torch.stack(hidden),
        "final_norm": normed[0][1][0],
        "topk_idx": topk_idx.to(torch.int32),
        "topk_weight": torch.stack([weight for _, (_, weight, _) in routed]).gather(-1, order),
        "logits": logits,
        "greedy": greedy,
    }
    if case.mtp:
        arrays["mtp_logits"] = mtp_logits(model, ids, normed[0][1][0])
    return {name: tensor.numpy() for name, tensor in arrays.items()}
