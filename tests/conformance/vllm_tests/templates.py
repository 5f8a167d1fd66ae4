"""Chat templates of the form that the models have which vLLM's tests ask for."""

from __future__ import annotations

_TOOLS = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "# Tools\n\nThe functions:\n"
    "<tools>{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}{{ '\n' }}</tools>\n\n"
    'Call them within <tool_call></tool_call>:\n<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n'
)
_SYSTEM = "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n"
_MESSAGES = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and loop.first %}"
    "{% elif message.role == 'assistant' and message.tool_calls %}"
    "<|im_start|>assistant\n{{ message.content or '' }}"
    "{% for call in message.tool_calls %}{{ '\n' }}<tool_call>\n{{ call.function | tojson }}{{ '\n' }}</tool_call>"
    "{% endfor %}<|im_end|>\n"
    "{% elif message.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ message.content + '\n' }}</tool_response>"
    "<|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role + '\n' + message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
)
CHATML = (
    _TOOLS
    + _SYSTEM
    + "{% else %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + _MESSAGES
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    _TOOLS
    + _SYSTEM
    + "{% endif %}"
    + _MESSAGES
    + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}"
    "{% if message.role in ('user', 'system', 'assistant') %}"
    "<|{{ message.role }}|>\n{{ message.content + eos_token }}\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
