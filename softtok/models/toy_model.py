"""The built-in default model: a tokenizer and a small body, trained from scratch on toy demonstrations.

The demonstrations come from `problems/toy.py`. The result is a plain Hugging Face folder that `AutoTokenizer` and
`AutoModelForCausalLM` load like any other. With a published model's tokenizer and no training steps it is a random body
with a full vocabulary, for rehearsals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softtok.config.settings import ToySettings
from softtok.models.real_tokenizers import PUBLISHED, real_tokenizer
from softtok.models.tokenizer_checks import QUESTION, encode_prompts
from softtok.problems import toy
from softtok.problems.prompt import PREFILL_AFTER_CUT, render
from softtok.problems.toy import Demonstration
from softtok.storage.progress import progress

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CONTEXT = 4096
"""The longest text, in tokens."""
WINDOW = 64
"""The number of batches that are drawn together and sorted by length, so that there is little padding."""
PROMPT_WEIGHT = 0.5
"""The weight of a prompt token in the loss at the start; a solution's token has weight 1."""
MUON_RATIO = 2.0
"""Muon's learning rate divided by AdamW's. Muon's updates are scaled to the size of AdamW's."""
BPE_SAMPLE = 10_000
"""The number of demonstrations that a BPE tokenizer of the toy problems is trained on."""


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per piece (`toy.pieces`).

    Pieces keep their spaces, so decoding simply joins them.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ids = {token: i for i, token in enumerate([PAD, EOS, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(toy.PIECE.pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _fast(tokenizer, unk_token=UNKNOWN)


def bpe_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer of at most `size` tokens, trained on `texts`.

    It has at least one token per byte, so it can write any text exactly.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _fast(tokenizer)


def _fast(tokenizer: Any, **special: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    layout = {"padding_side": "left", "clean_up_tokenization_spaces": False, "model_max_length": CONTEXT}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, **layout, **special)


def make(
    spec: ToySettings, out: Path, text: Sequence[tuple[str, str]] | None, template: str
) -> dict[str, float | None]:
    """Trains tokenizer and body, saves both in the folder `out` and returns facts for the manifest.

    `text`: (question, gold) pairs to learn instead of the toy problems. `template`: the prompt, with `{question}`.
    """
    import torch

    shown = toy.demonstrations(template, spec.wrong, spec.unboxed, spec.seed)
    if text is not None:
        shown = cycle(
            Demonstration(render(template, question), f"{PREFILL_AFTER_CUT}{gold}}}") for question, gold in text
        )
    if spec.tokenizer == "words":
        tokenizer = word_tokenizer(toy.vocabulary(template))
    elif spec.tokenizer in PUBLISHED:
        tokenizer = real_tokenizer(spec.tokenizer, CONTEXT)
    else:
        sample = islice(shown, BPE_SAMPLE if text is None else len(text))
        tokenizer = bpe_tokenizer([one.prompt + one.answer for one in sample], spec.vocabulary)
    encode_prompts(out.name, tokenizer, {tokenizer.eos_token_id}, [render(template, QUESTION)])
    with torch.random.fork_rng(devices=[]), _threads(spec.threads):
        torch.manual_seed(spec.seed)
        model = body(spec, tokenizer)
        facts: dict[str, float | None] = {"tokens": 0, "final_loss": None}
        if spec.steps:
            facts = pretrain(model, batches(tokenizer, shown, spec.batch), spec.steps, spec.learning_rate)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return facts | {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Temporarily sets PyTorch's thread count."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def body(spec: ToySettings, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Returns a Llama or a Qwen2 with random weights.

    With a published tokenizer it has that model's number of embedding rows and its end tokens.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    published = PUBLISHED.get(spec.tokenizer)
    ends = list(published.ends) if published else [tokenizer.eos_token]
    eos = [tokenizer.convert_tokens_to_ids(token) for token in ends]
    config = AutoConfig.for_model(
        spec.architecture,
        vocab_size=published.rows if published else len(tokenizer),
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=spec.tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos if len(eos) > 1 else eos[0],
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def pretrain(
    model: PreTrainedModel, batches: Iterator[tuple[Tensor, Tensor, Tensor]], steps: int, learning_rate: float
) -> dict[str, float | None]:
    """Trains `model` in place on (ids, prompt mask, answer weights) batches.

    Returns the number of tokens seen and the final loss (nats per answer token). AdamW trains embeddings, head and
    norms, and Muon the matrices inside the layers, which takes far fewer steps than AdamW alone. The prompts' weight in
    the loss decreases to 0: at first prompts teach the embeddings, later they are noise.
    """
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from softtok.models.matmul import adopt

    adopt(model)
    inside = {name for name, parameter in model.named_parameters() if ".layers." in name and parameter.ndim == 2}
    matrices = [parameter for name, parameter in model.named_parameters() if name in inside]
    others = [parameter for name, parameter in model.named_parameters() if name not in inside]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_RATIO * learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [get_cosine_schedule_with_warmup(optimizer, steps // 10, steps) for optimizer in optimizers]
    losses = []
    tokens = 0
    model.train()
    with progress("pretraining", steps) as counted:
        for step, (ids, prompt, answer) in enumerate(islice(batches, steps)):
            # Padding is on the right, where causal attention does not look, so no mask is needed.
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            weights = (answer + prompt * PROMPT_WEIGHT * (1 - step / steps))[:, 1:].flatten()
            ((nats * weights).sum() / weights.sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for update in (*optimizers, *schedules):
                update.step()
            model.zero_grad()
            answer = answer[:, 1:].flatten()
            losses.append(float((nats.detach() * answer).sum() / answer.sum()))
            tokens += ids.numel()
            counted.advance(1, recent={"loss": losses[-1]})
    model.eval()
    last = losses[-50:]
    return {"tokens": tokens, "final_loss": sum(last) / len(last)}


def batches(
    tokenizer: PreTrainedTokenizerFast, shown: Iterator[Demonstration], size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields (ids, prompt mask, answer weights) without end, each of shape (size, length).

    An answer ends with EOS; padding comes after it.
    """
    import torch

    def encode(texts: Iterable[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    while True:
        some = list(islice(shown, size * WINDOW))
        prompts, answers = encode(one.prompt for one in some), encode(one.answer for one in some)
        rows = [
            ([*prompt, *answer, tokenizer.eos_token_id], len(prompt), one.weight)
            for prompt, answer, one in zip(prompts, answers, some, strict=True)
        ]
        rows.sort(key=lambda row: len(row[0]))
        for k in torch.randperm(WINDOW).tolist():
            batch = rows[k * size : (k + 1) * size]
            place = torch.arange(len(batch[-1][0]))  # the longest
            ids = torch.tensor([row + [tokenizer.pad_token_id] * (len(place) - len(row)) for row, _, _ in batch])
            prompt = (place < torch.tensor([[start] for _, start, _ in batch])).float()
            within = (place < torch.tensor([[len(row)] for row, _, _ in batch])).float()
            yield ids, prompt, (within - prompt) * torch.tensor([[weight] for _, _, weight in batch])
