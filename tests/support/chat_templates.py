"""Chat templates in the published formats of Llama 3 and Qwen 2.5, whose packages hold vocabularies alone.

Llama 3's begins with BOS and writes the date, Qwen 2.5's writes a system message of its own where none is given.
"""

from __future__ import annotations

from typing import Any

from softtok.models.real_tokenizers import real_tokenizer

CONTEXT = 4096
_LLAMA_TURN = "{{ '<|start_header_id|>' + %s + '<|end_header_id|>\n\n' }}"
TEMPLATES = {
    "llama-3": "{{ bos_token }}"
    "{% set told = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set day = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
    + _LLAMA_TURN
    % "'system'"
    + "{{ 'Today Date: ' + day + '\n\n' + told | trim + '<|eot_id|>' }}"
    "{% for message in messages if message.role != 'system' %}"
    + _LLAMA_TURN
    % "message.role"
    + "{{ message.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}" + _LLAMA_TURN % "'assistant'" + "{% endif %}",
    "qwen-2.5": "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
BEHIND = {
    "llama-3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen-2.5": "<|im_start|>assistant\n",
    "smollm2": "<|im_start|>assistant\n",
}
"""The generation prompts, behind which the CoT starts."""
NO_SYSTEM = (
    "{{ raise_exception('System role not supported') if messages[0].role == 'system' else messages[0].content }}"
)


def chat_tokenizer(name: str) -> Any:
    """Returns a published tokenizer with its chat template."""
    tokenizer = real_tokenizer(name, CONTEXT)
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer
