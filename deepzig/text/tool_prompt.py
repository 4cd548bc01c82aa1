"""Tells a model of its tools where the chat template does not: a prelude that puts them into the system message.

Used by `chat.ChatTemplate.telling_tools`. DeepSeek's published templates show past calls but leave the list of tools
to the caller; V3.1's model card gives the words, V3's and R1's are in their manner. Kimi-K2's template lists them
itself. As part of the template the marks in it count as control tokens, while names and descriptions stay plain text.
"""

# ruff: noqa: RUF001

import re

from deepzig.text.answer_format import DEEPSEEK_V3, DEEPSEEK_V31, ToolFormat

_V31 = """\
## Tools
You have access to the following tools:
{% for tool in tools %}

### {{ tool.function.name }}
Description: {{ tool.function.description or '' }}

Parameters: {{ (tool.function.parameters or {}) | tojson }}
{% endfor %}

IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>\
{additional_tool_calls}<｜tool▁calls▁end｜>

Where:

- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces"""
_V3 = """\
## Tools

### Function

You have the following functions available:
{% for tool in tools %}

- `{{ tool.function.name }}`:
```json
{{ tool.function | tojson }}
```
{% endfor %}

When a call is needed, use exactly this format, with valid JSON:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>FUNCTION_NAME
```json
{"argument": "value"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"""

_WORDS = {DEEPSEEK_V3.name: _V3, DEEPSEEK_V31.name: _V31}


def prelude(source: str, tools: ToolFormat) -> str:
    """What to put before a template's source; nothing if it reads `tools` itself."""
    if tools.name not in _WORDS or re.search(r"\btools\b", source):
        return ""
    return (
        "{%- if tools -%}{%- set told -%}" + _WORDS[tools.name] + "{%- endset -%}"
        "{%- if messages[0].role == 'system' -%}"
        "{%- set messages = [{'role': 'system', 'content': messages[0].content + '\\n\\n' + told}] + messages[1:] -%}"
        "{%- else -%}{%- set messages = [{'role': 'system', 'content': told}] + messages -%}{%- endif -%}"
        "{%- endif +%}"
    )
