"""Writes prompts as a model's tokenizer wants them: plain texts, or its own chat template around their messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from softtok.errors import UserError
from softtok.models.tokenizer_checks import encode
from softtok.problems.prompting import Asking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from softtok.models.language_model import LanguageModel

TODAY = date(2024, 7, 26)
"""The day that templates are told. Llama 3's write the date into each prompt; with the real one, a run could not be
repeated a day later. This is the day that they fall back to."""
CLOCK = "strftime_now"
"""The function by which templates ask for the date."""
DIRECTIVES = ("%-d", "%-m", *(f"%{letter}" for letter in "aAbBcdDeFHIjmMpSUwWxXyY"))


def ask(lm: LanguageModel, asking: Asking, questions: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Returns the prompts of questions as texts and as ids. Raises UserError, as `encode` does."""
    texts = prompt_texts(lm.name, lm.tokenizer, asking, questions)
    return texts, encode(lm, texts, asking.chat)


def prompt_texts(name: str, tokenizer: PreTrainedTokenizerBase, asking: Asking, questions: Sequence[str]) -> list[str]:
    """Returns the prompts of questions; those of a chat end with the template's generation prompt.

    Raises UserError if the tokenizer has no chat template, or one that does not take these messages.
    """
    if not asking.chat:
        return [asking.text(question) for question in questions]
    if not tokenizer.chat_template:
        raise UserError(
            f"model {name}: chat_template: true, and its tokenizer has no chat template; leave the key out, or give the"
            " folder of a model that was trained to chat"
        )
    return [_chat(name, tokenizer, asking.messages(question)) for question in questions]


def with_fixed_day(template: str) -> str:
    """Returns a chat template for which it is always the same day.

    A macro takes the place of transformers' function: since version 5.23, a function that is given beside the messages
    does not reach the template. The line break is the macro's own, which Jinja leaves out.
    """
    if CLOCK not in template:
        return template
    told = "".join(f" | replace({one!r}, {TODAY.strftime(one)!r})" for one in DIRECTIVES)
    return f"{{% macro {CLOCK}(form) %}}{{{{ form{told} }}}}{{% endmacro %}}\n{template}"


def _chat(name: str, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    try:
        template = with_fixed_day(tokenizer.get_chat_template())
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template may raise what it likes; some refuse a system message
        why = " ".join(str(error).split())[:200]
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise UserError(
            f"model {name}: its chat template does not take messages of {roles} ({why or type(error).__name__})"
        ) from error
    return str(text)
