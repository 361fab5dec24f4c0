"""Text ends the phases of a trajectory where it should: the text of a real BPE tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softtok.method.rollout import rollout
from softtok.method.stopping import TextRules
from softtok.method.stream import Room
from softtok.method.teacher_forcing import lay_out
from softtok.method.trajectories import STOPS, Batch, Limits, Policy
from softtok.models.beginnings import common_tokens
from softtok.problems.prompt import PREFILL_AFTER_CUT, PREFILL_AFTER_STOP, STOP_PHRASE, decode
from tests.support.beginnings import sharing
from tests.support.rollouts import MODES, streamed
from tests.support.tiny_models import token_mode


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Byte-level BPE that splits as Llama 3 and Qwen do.

    Words have the space in front, and punctuation is glued to the line break behind it.
    """
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), behavior="isolated")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"Ada has {i} pears. {i} + 2 = {i + 2}. {STOP_PHRASE} \\boxed{{{i + 2}}} So:\n{i}\n" for i in range(30)]
    core.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    assert 2 < len(made.encode(STOP_PHRASE)) < CAP, "the phrase spans some tokens"
    assert len(made.encode(":\n")) == 1, "its end may be glued to what follows"
    return made


class ScriptedModel:
    """A `LanguageModel` whose next token is any function of the text so far, whatever the machinery around it does.

    Its states are what it was fed, so it reads the text from its own cache: a row that is mixed up, masked wrongly or
    put at a wrong position has a text that nobody wrote, and fails.
    """

    def __init__(self, tokenizer: Any, continuations: dict[tuple[int, ...], int], eos: int | list[int] | None = None):
        size = len(tokenizer) + 7  # an embedding may have more rows than there are tokens
        self.embedding_VD = F.normalize(torch.randn(size, 48, generator=torch.Generator().manual_seed(0)), dim=-1)
        self.head_VD = 300 * self.embedding_VD  # sure of itself at any temperature
        self.tokenizer, self.continuations = tokenizer, continuations
        self.device, self.dtype, self.cuda_graphs = torch.device("cpu"), torch.float32, False
        self.model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.embedding_VD)

    def hidden(
        self, embeds: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        fed, _ = cache.update(embeds[:, None], embeds[:, None], 0)
        if mask is None:  # decoding: the layer knows whose prompt stands in front of what a row wrote
            owner = fed.groups.owner_n
            own = fed.keys[0, :, : fed.written]
            seen = torch.ones(own.shape[:2], dtype=torch.bool) if fed.unseen is None else ~fed.unseen[:, 0]
            mask = torch.cat([~fed.groups.padding_BP[owner], seen], 1)
            common = [] if fed.common is None else [fed.common[0].expand(len(own), -1, -1)]
            fed, mask = torch.cat([*common, fed.prompt_keys[0, owner], own], 1)[:, None], mask[:, None, None]
            mask = F.pad(mask, (fed.shape[2] - mask.shape[-1], 0), value=True)
        assert mask.shape[-1] == fed.shape[2]
        texts = (fed[:, 0] @ self.embedding_VD.T).argmax(-1)
        states = torch.zeros_like(embeds)
        for row in range(len(embeds)):
            seen = mask[row, 0, -1]
            assert positions[row, -1] == seen.sum() - 1, "a position is the number of tokens before it"
            states[row, -1] = self.embedding_VD[self.next_id(texts[row][seen].tolist())]
        return states

    def next_id(self, text: list[int]) -> int:
        while tuple(text) not in self.continuations:
            assert text[-1:] == [0], f"nobody wrote {self.tokenizer.decode(text)!r}"
            text = text[:-1]  # a finished row that waits to be dropped is fed id 0
        return self.continuations[tuple(text)]


@dataclass(frozen=True)
class Case:
    """What the model would write, and what is made of it.

    It is in pieces that are encoded apart, so that token boundaries fall between them. Of the CoT all but the last
    `unread` pieces are read, of the answer the first `answered` tokens.
    """

    cot: tuple[str, ...]
    stop: str
    answer: tuple[str, ...] = ("12", "}")
    unread: int = 0
    answered: int | None = None
    last_at: int | None = None  # fill in front, so that the last token of the CoT is the `last_at`-th


CAP, ANSWER_CAP = 24, 5
CASES = {
    "phrase from step 0": Case((STOP_PHRASE,), "phrase"),
    "space in front": Case((" " + STOP_PHRASE,), "phrase"),
    "after other words": Case(("Ada has", " 5 + 2", " = 7.", " " + STOP_PHRASE), "phrase", ("7", "}")),
    "cut inside its words": Case(("Th", "e fin", "al an", "swer", " ", "is", ":"), "phrase"),
    "colon glued to a line break": Case(("The final answer", " is", ":\n"), "phrase"),
    "white space behind the phrase": Case((STOP_PHRASE, "\n\n"), "phrase", unread=1),
    "words behind the phrase": Case((STOP_PHRASE, " 7"), "phrase", unread=1),
    "almost the phrase": Case(("The final answer is", " that: 7", "<eos>"), "eos"),
    "end of the phrase alone": Case(("The answer is:", "<eos>"), "eos"),
    "EOS at step 0": Case(("<eos>",), "eos", ("3", "}")),
    "EOS inside the phrase": Case(("The final answer", "<eos>", " is:"), "eos", ("3", "}"), unread=1),
    "phrase behind EOS": Case(("Ada", "<eos>", STOP_PHRASE), "eos", unread=1),
    "no end": Case((" Ada has", " pears." * 40), "cap", last_at=CAP),
    "phrase at the cap": Case((STOP_PHRASE,), "phrase", last_at=CAP),
    "phrase right behind the cap": Case((STOP_PHRASE,), "cap", last_at=CAP + 1),
    "EOS at the cap": Case(("<eos>",), "eos", last_at=CAP),
    "EOS right behind the cap": Case(("<eos>",), "cap", last_at=CAP + 1),
    "answer ends with EOS": Case((STOP_PHRASE,), "phrase", ("12", "<eos>", "3"), answered=-1),
    "answer is EOS": Case((STOP_PHRASE,), "phrase", ("<eos>",)),
    "braces in the answer": Case((STOP_PHRASE,), "phrase", ("{", "1", "}", "2", "}")),
    "escaped brace": Case((STOP_PHRASE,), "phrase", ("1", "\\", "}", "}")),
    "answer goes on behind its box": Case((STOP_PHRASE,), "phrase", ("1", "}", "<eos>"), answered=-1),
    "answer at its cap": Case(("<eos>",), "eos", ("1", "2", "3", "4", "5", "}"), answered=ANSWER_CAP),
    "box closes at the cap": Case(("<eos>",), "eos", ("1", "2", "3", "4", "}")),
}


@dataclass(frozen=True)
class Script:
    """A case as ids."""

    prompt: list[int]
    cot: list[int]
    stop: str
    words: list[int]
    answer: list[int]
    continuations: dict[tuple[int, ...], int]


def write(tokenizer: Any, number: int, case: Case) -> Script:
    """The model follows the case; while words are prefilled, and behind the end, it would rather say EOS."""

    def ids(*pieces: str) -> list[int]:
        return [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]

    # Prompts of several lengths that begin alike, all different; the phrase in a prompt means nothing.
    prompt = ids("How many pears has Ada?", *["Ada has pears."] * (number % 4), f"{STOP_PHRASE} {number}:")
    wish, cot = ids(*case.cot), ids(*case.cot[: len(case.cot) - case.unread])
    if case.last_at is not None:
        filler = ids(" pears" * CAP)[: max(0, case.last_at - len(wish))]
        wish = filler + wish
        cot = wish[:CAP]
    words = ids(PREFILL_AFTER_STOP if case.stop == "phrase" else PREFILL_AFTER_CUT)
    answer = ids(*case.answer)
    continuations = {tuple(prompt + wish[:t]): wish[t] for t in range(len(wish))}
    start = prompt + cot
    continuations |= {tuple(start + words[:t]): tokenizer.eos_token_id for t in range(1, len(words))}
    continuations.setdefault(tuple(start), tokenizer.eos_token_id)
    start = start + words
    continuations |= {tuple(start + answer[:t]): answer[t] for t in range(len(answer))}
    continuations[tuple(start + answer)] = tokenizer.eos_token_id
    return Script(prompt, cot, case.stop, words, answer[: case.answered], continuations)


@pytest.mark.parametrize(
    ("places", "shared"),
    [("kept", False), ("dropped", False), ("dropped", True), ("replaced", False), ("replaced", True)],
)
@pytest.mark.parametrize("mode", ["hard", "hard-greedy", "soft", "fuzzy"])
def test_text_ends_the_phases(tokenizer: Any, mode: str, places: str, shared: bool) -> None:
    """All cases in one batch, so that rows end at all steps and are in all phases at once, two samples each.

    The places of finished rows are kept, dropped or given to other rows.
    """
    scripts = [write(tokenizer, number, case) for number, case in enumerate(CASES.values())]
    lm: Any = ScriptedModel(tokenizer, {k: v for script in scripts for k, v in script.continuations.items()})
    prompts = [script.prompt for script in scripts]
    with sharing(shared):
        common = common_tokens(prompts)
    assert (common > 3) == shared
    lm.continuations[tuple(prompts[0][:common])] = tokenizer.eos_token_id  # nobody asks for what follows it
    writer = Policy(lm, TextRules(lm), token_mode(lm, MODES[mode]), Limits(CAP, ANSWER_CAP, 1.0, "shadow"))
    batch = Batch(prompts, 2, [str(row) for row in range(2 * len(scripts))])
    with sharing(shared):
        if places == "replaced":
            out = streamed(writer, batch, Room(7, 10**9))
        else:
            out = rollout(writer, batch, record=True, drop_rows=places == "dropped")
    laid = lay_out(out)
    for row in range(2 * len(scripts)):
        name, script = list(CASES)[row // 2], scripts[row // 2]
        got = (STOPS[out.stops[row]], decode(tokenizer, out.cot(row)), decode(tokenizer, out.answers[row]))
        assert got == (script.stop, decode(tokenizer, script.cot), decode(tokenizer, script.answer)), name
        assert (out.cot(row), out.answers[row]) == (script.cot, script.answer), name
        fed = script.cot + script.words + script.answer
        assert laid.ids_NL[row, : laid.lengths_N[row]].tolist() == fed, name
        assert np.flatnonzero(laid.cot_NL[row]).tolist() == list(range(len(script.cot))), name
        first = len(script.cot) + len(script.words)
        assert np.flatnonzero(laid.answer_NL[row]).tolist() == list(range(first, first + len(script.answer))), name
    assert len(set(out.cot_lengths)) > 5, "rows end at different steps"
    assert out.near_ties.sum() == 0


def test_the_texts_of_the_prefill_read_on(tokenizer: Any) -> None:
    """Behind the phrase comes the box alone; behind a cut or an EOS the phrase, a space in front, and the box."""
    text_rules = TextRules(ScriptedModel(tokenizer, {}))  # type: ignore[arg-type]
    assert decode(tokenizer, text_rules.prefill_after_phrase) == r" \boxed{"
    assert decode(tokenizer, text_rules.prefill_after_cut) == r" The final answer is: \boxed{"


@pytest.mark.parametrize("eos", [[1, 40], 40])
def test_every_eos_of_the_generation_config_counts(tokenizer: Any, eos: int | list[int]) -> None:
    """Chat models end with another token than their tokenizer's EOS: it ends a CoT and an answer too."""
    lm: Any = ScriptedModel(tokenizer, {}, eos=eos)
    text_rules = TextRules(lm)
    for end in (1, 40):
        assert text_rules.may_stop[end]
        assert text_rules.stop(np.array([50, end])) == "eos"
        assert text_rules.answer_ends([50, end])
    assert not text_rules.may_stop[41]
    assert text_rules.stop(np.array([40, 41])) is None and not text_rules.answer_ends([41])
