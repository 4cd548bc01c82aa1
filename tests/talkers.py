"""Models that think and call, made of the bundled one with chat templates of the families, and what they say.

Used by the tests of the server and of the chat in the terminal.
"""

# ruff: noqa: RUF001

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepzig.checkpoint.model_names import BUNDLED

TOOL_MARKS = [
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
    "<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_call_argument_begin|>",
]  # fmt: skip
_CALLS_V31 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{{ c.function.arguments }}"
_CALLS_V3 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}\n```json\n```"
_CALLS_K2 = (
    "<|tool_calls_section_begin|><|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ c.function.arguments }}"
    "<|tool_call_end|><|tool_calls_section_end|>"
)
_TEMPLATE = """\
{{ bos_token }}{% for m in messages %}
{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<｜User｜>{{ m.content }}
{% elif m.role == 'tool' %}{{ m.content }}{% else %}<｜Assistant｜>{{ m.content }}
{% for c in m.tool_calls or [] %}CALLS{% endfor %}{{ eos_token }}{% endif %}{% endfor %}
<｜Assistant｜>GENERATION"""
_TOOLS_K2 = "{{ tools | tojson if tools else '' }}"
TEMPLATES = {
    "V2.5": _TEMPLATE.replace("CALLS", _CALLS_V3).replace("GENERATION", ""),
    "R1": _TEMPLATE.replace("CALLS", _CALLS_V3).replace("GENERATION", "<think>{# </think> #}\n"),
    "V3.1": _TEMPLATE.replace("CALLS", _CALLS_V31).replace(
        "GENERATION", "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"
    ),
    "K2": _TOOLS_K2 + _TEMPLATE.replace("CALLS", _CALLS_K2).replace("GENERATION", ""),
}
TEMPLATES["V2-Lite"] = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\\n\\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# These leave <think> to the model.
TEMPLATES["R1-0528"] = TEMPLATES["V2.5"] + "{# </think> #}"
TEMPLATES["K2-Thinking"] = TEMPLATES["K2"] + "{# </think> #}"


def make_talker(directory: Path, template: str | None) -> Path:
    """The bundled model with control tokens of DeepSeek-V3 and Kimi-K2 in place of its rarest words, and a template."""
    source = BUNDLED["stories"]
    for name in ("config.json", "generation_config.json"):
        shutil.copy(source / name, directory / name)
    (directory / "model.safetensors").symlink_to(source / "model.safetensors")
    data = json.loads((source / "tokenizer.json").read_text())
    rarest = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)[-len(TOOL_MARKS) :]
    for mark, word in zip(TOOL_MARKS, rarest, strict=True):
        token = {"id": data["model"]["vocab"].pop(word), "content": mark, "special": False}
        data["added_tokens"].append({**data["added_tokens"][5], **token})
    data["model"]["merges"] = data["model"]["merges"][: -len(TOOL_MARKS)]
    for token in data["added_tokens"]:
        if token["content"] in ("<think>", "</think>"):
            token["special"] = False  # as in DeepSeek's own
    (directory / "tokenizer.json").write_text(json.dumps(data))
    config = json.loads((source / "tokenizer_config.json").read_text())
    del config["chat_template"]
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


class Script:
    """A constraint that allows one answer, whatever the model would like to say."""

    def __init__(self, tokens: Sequence[int], vocab_size: int) -> None:
        self._tokens, self._vocab_size, self._position = tokens, vocab_size, 0

    @property
    def is_complete(self) -> bool:
        return self._position == len(self._tokens)

    def allowed(self) -> np.ndarray:
        allowed = np.zeros(self._vocab_size, bool)
        allowed[self._tokens[self._position]] = True
        return allowed

    def accept(self, token: int) -> None:
        self._position += 1

    def copy(self) -> "Script":
        other = Script(self._tokens, self._vocab_size)
        other._position = self._position
        return other
