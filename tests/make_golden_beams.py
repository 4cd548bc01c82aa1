"""Write tests/golden/*/beams.json: what the beam search of HF transformers finds on the golden checkpoints.

Run by hand, as make_golden.py, whose checkpoints it uses; never by the tests. Arguments: cases, or
none for all. A search is kept only if noise on the log-probabilities, larger than what two implementations differ by,
does not change its answers.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from golden_reference import load_reference
from golden_weights import decode_checkpoint
from make_golden import CASES, GOLDEN
from transformers import LogitsProcessor, LogitsProcessorList

NOISE = 2e-4  # on log-probabilities: ten times what implementations differ by
N_NOISY = 2  # searches with noise that must agree
N_PROMPTS = 12  # beginnings of the prompt that are tried
MAX_NEW_TOKENS = 16
# num_beams, length_penalty, early_stopping, repetition_penalty
SEARCHES = [
    (2, 1.0, False, 1.0),
    (4, 1.0, True, 1.0),
    (3, 0.0, "never", 1.0),
    (4, 2.0, "never", 1.0),
    (5, -0.5, False, 1.0),
    (3, 1.0, False, 1.3),
]


class Noise(LogitsProcessor):
    """Adds uniform noise to scores."""

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, _ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        noise = (torch.rand(scores.shape, generator=self._random) * 2 - 1) * NOISE
        return scores + noise  # type: ignore[return-value]


def search(model: Any, ids: torch.Tensor, eos: list[int], options: tuple[Any, ...], noise: int | None) -> Any:
    """HF's answers, all num_beams of them, best first, without the prompt; and their scores."""
    num_beams, length_penalty, early_stopping, repetition_penalty = options
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),  # else HF hides tokens of the prompt that equal pad_token_id
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        repetition_penalty=repetition_penalty,
        eos_token_id=eos or None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([] if noise is None else [Noise(noise)]),
    )
    answers = [cut(row[ids.shape[1] :].tolist(), eos) for row in found.sequences]
    return answers, found.sequences_scores.tolist()


def cut(tokens: list[int], eos: list[int]) -> list[int]:
    """The tokens without the padding after the end."""
    ends = [place for place, token in enumerate(tokens) if token in eos]
    return tokens[: ends[0] + 1] if ends else tokens


def first_sound(model: Any, prompt: np.ndarray, options: tuple[Any, ...]) -> dict[str, Any] | None:
    """The search for the longest beginning of the prompt that has answers of several lengths and bears noise."""
    for n_prompt in range(len(prompt), len(prompt) - N_PROMPTS, -1):
        ids = torch.from_numpy(prompt[:n_prompt])[None]
        unended, _ = search(model, ids, [], options, None)
        tokens = list(dict.fromkeys(itertools.chain(*zip(*unended, strict=True))))
        eos = sorted(tokens[4:7:2])  # two tokens that beams run into early
        answers, scores = search(model, ids, eos, options, None)
        if len({len(answer) for answer in answers}) == 1 and options[1] <= 1:  # above 1 the longest are the best
            continue
        if all(search(model, ids, eos, options, seed)[0] == answers for seed in range(N_NOISY)):
            names = ("num_beams", "length_penalty", "early_stopping", "repetition_penalty")
            return {
                "n_prompt": n_prompt,
                "eos_token_ids": eos,
                "max_tokens": MAX_NEW_TOKENS,
                **dict(zip(names, options, strict=True)),
                "answers": answers,
                "scores": scores,
            }
    return None


def make_beams(name: str) -> str:
    """Write beams.json of one case: of each setting the first search that is sound."""
    config = json.loads((GOLDEN / name / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        model = load_reference(config, decode_checkpoint(GOLDEN / name), Path(scratch))
    model.generation_config = transformers.GenerationConfig()
    prompt = np.load(GOLDEN / name / "expected.npz")["ids"]
    found = [first_sound(model, prompt, options) for options in SEARCHES]
    searches = [each for each in found if each is not None]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    lines = ",\n".join(json.dumps(each) for each in searches)
    text = f'{{"versions": {json.dumps(versions)}, "searches": [\n{lines}\n]}}\n'
    (GOLDEN / name / "beams.json").write_text(text)
    return f"{name}: {len(searches)} of {len(SEARCHES)} searches"


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[attr-defined]
    with torch.inference_mode():
        for case in sys.argv[1:] or CASES:
            print(make_beams(case), flush=True)
