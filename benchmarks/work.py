"""The work that is timed, the same on every side.

Random Llamas, prompts of mixed length, a cheap reward, and one RLOO step made of softtok's public functions just as
`train.py` makes it. What softtok's functions are called with stands here and in `toy.py` alone.

Nothing stops early: our side samples no EOS and no word of the stop phrase, the peers suppress EOS. So every
row samples exactly T tokens. Ours are T - 1 CoT tokens, one prefilled word and one answer token, and so one decode
step more than the peers take.

Shapes: B prompts, G samples per prompt, P tokens of the longest prompt, T new tokens, D width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softtok.config.flops import Load, Size
from softtok.config.settings import RuntimeSettings, TokenMode, TrainingSettings
from softtok.method.noise_units import embedding_rms
from softtok.method.objectives import group_advantages, objective_of
from softtok.method.policy_gradient import accumulate_gradients
from softtok.method.rollout import rollout
from softtok.method.sampling import log_prob, mix
from softtok.method.stopping import TextRules
from softtok.method.terms import Experience, Loss, Tiling
from softtok.method.token_modes import bind
from softtok.method.trajectories import Batch, Limits, Policy, Rollout
from softtok.models.language_model import NO_BEGINNING, LanguageModel, logits_fp32, prefill
from softtok.models.matmul import product
from softtok.problems.answer_format import PAPER_FORMAT
from softtok.training.optimizer import MasterAdamW

PAD, EOS = 0, 1
MODES = {
    "hard": TokenMode(tokens="hard", temperature=1.0),
    "soft": TokenMode(tokens="soft", temperature=0.5, noise_scale=0.33),
    "fuzzy": TokenMode(tokens="soft", temperature=1e-4, noise_scale=0.33),
}
LEARNING_RATE = 1e-5


SIZES = {
    "S": Size(128, 4, 4, 2, 384, 4096),  # about 1M parameters
    "M": Size(384, 6, 6, 2, 1024, 8192),  # about 10M
    "L": Size(768, 12, 12, 4, 2048, 32_000),  # about 100M
    "R": Size(576, 30, 9, 3, 1536, 49_152),  # 135M, the shape of SmolLM2-135M
    "3B": Size(3072, 28, 24, 8, 8192, 128_256),  # the shape of Llama 3.2 3B, for GPUs
}


def random_llama(size: Size, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """The same weights wherever it is called."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        intermediate_size=size.mlp_width,
        max_position_embeddings=4096,
        tie_word_embeddings=size.tied,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
        return model.to(dtype).eval()


def word_tokenizer(vocabulary: int, eos: bool, unsampled: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose token i is the word `wi`; words stand between spaces.

    The words of `unsampled` have ids beyond the model's vocabulary, which are never sampled.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    texts = [*(f"w{i}" for i in range(vocabulary)), *dict.fromkeys(unsampled)]
    words = Tokenizer(models.WordLevel({text: i for i, text in enumerate(texts)}, unk_token=f"w{PAD}"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast  # whose arguments have no types
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=words, pad_token=f"w{PAD}", padding_side="left", **({"eos_token": f"w{EOS}"} if eos else {})
    )
    return tokenizer


def make_prompts(size: Size, load: Load) -> list[list[int]]:
    """B prompts of mixed length behind what all begin with, the same wherever it is called."""
    generator = np.random.default_rng(0)
    common = generator.integers(2, size.vocabulary, load.common).tolist()
    return [common + generator.integers(2, size.vocabulary, length).tolist() for length in load.lengths]


def reward(ids: list[int]) -> float:
    """A cheap function of ids: the share of even ones among the sampled tokens, in percent."""
    return 100 * sum(i % 2 == 0 for i in ids) / len(ids)


def digest(model: nn.Module, prompts: list[list[int]]) -> str:
    """A hash of all weights and prompts: equal where the work is the same."""
    found = hashlib.sha256(repr(prompts).encode())
    for name, parameter in sorted(model.named_parameters()):
        found.update(name.encode())
        found.update(parameter.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def synchronize(device: torch.device) -> None:
    """Waits for a GPU's queue, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def timed_backward() -> Iterator[np.ndarray]:
    """Yields what PyTorch's backward passes take while the block runs, as `clocks` has it; the rest is forward."""
    took, backward = np.zeros(2), torch.autograd.backward

    def timed(*arguments: Any, **options: Any) -> None:
        started = clocks()
        backward(*arguments, **options)
        took[:] += clocks() - started

    with mock.patch.object(torch.autograd, "backward", timed):
        yield took


def clocks() -> np.ndarray:
    """Wall time and CPU time of all threads of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


class Ours:
    """softtok on one size and load: rollouts, whole steps and their parts, by name."""

    def __init__(self, size: Size, load: Load, dtype: torch.dtype = torch.float32, device: str = "cpu", **runtime: Any):
        self.size, self.load = size, load
        model = random_llama(size, dtype, device)
        model.generation_config.eos_token_id = None
        self.prompts = make_prompts(size, load)
        self.digest = digest(model, self.prompts) if device == "cpu" else ""
        prefill = PAPER_FORMAT.prefill_after_cut.split()  # `TextRules` wants to find its words, so that they have ids
        tokenizer = word_tokenizer(size.vocabulary, eos=False, unsampled=prefill)
        self.lm = LanguageModel(model, tokenizer, "random Llama")
        self.rules = TextRules(self.lm)
        # One prefilled word in place of five: prefilled words are not sampled, and T tokens are to be.
        self.rules.prefill_after_phrase = self.rules.prefill_after_cut = [PAD]
        settings = TrainingSettings(
            learning_rate=LEARNING_RATE,
            warmup_steps=0,
            max_cot_tokens=load.new_tokens - 1,
            max_answer_tokens=1,
            prompts_per_step=load.prompts,
            samples_per_prompt=max(load.samples, 2),  # rollouts of a single sample take no step
        )
        self.loss = Loss(settings, objective_of(settings), Tiling.of(RuntimeSettings(**runtime)))
        self.optimizer = MasterAdamW(model, settings)
        rms = {"embedding": embedding_rms(self.lm.embedding_VD)}
        self.tokens = {name: bind(mode, rms) for name, mode in MODES.items()}
        self.steps = 0
        self.limits = Limits(settings.max_cot_tokens, 1, settings.answer_temperature, settings.stop_on)

    def rollout(self, mode: str) -> Rollout:
        """B x G trajectories as `Trainer.take_step` makes them."""
        keys = [f"train|0|{self.steps}|{row}" for row in range(self.load.rows)]
        policy = Policy(self.lm, self.rules, self.tokens[mode], self.limits)
        out = rollout(policy, Batch(self.prompts, self.load.samples, keys), record=True)
        sampled = out.cot_lengths.sum() + sum(map(len, out.answers))
        assert sampled == self.load.rows * self.load.new_tokens, f"{sampled} tokens were sampled"
        return out

    def estimate(self, estimator: str, iterations: int) -> None:
        """Lets the passes from now on take the gradient of the CoT in this way."""
        asked = {"estimator": estimator, "adjoint_iterations": iterations}
        self.loss = replace(self.loss, settings=self.loss.settings.model_copy(update=asked))

    def update(self, mode: str, out: Rollout) -> None:
        """Reward, leave-one-out advantages and the teacher-forced pass, as `Trainer.take_step` makes them."""
        rewards = torch.tensor([reward(out.cot(row) + out.answers[row]) for row in range(self.load.rows)])
        advantages_BG = group_advantages(rewards.view(self.load.prompts, -1), self.loss.objective)
        experience = Experience(out, advantages_BG.flatten().numpy())
        self.optimizer.zero_grad()
        accumulate_gradients(self.lm, self.tokens[mode], experience, self.loss, gradients=self.optimizer.gradients)
        self.norm = self.optimizer.gradient_norm()

    def step(self, mode: str) -> dict[str, float]:
        """Rollout, reward, loss, update; returns what the rollout and the pass took of it."""
        self.steps += 1
        started = self.clocks()
        out = self.rollout(mode)
        rolled_out = self.clocks()
        self.update(mode, out)
        passed = self.clocks()
        self.optimizer.step(self.steps, self.norm)
        synchronize(self.lm.device)
        (rollout_wall, rollout_cpu), (pass_wall, pass_cpu) = rolled_out - started, passed - rolled_out
        return {
            "rollout_wall_s": rollout_wall,
            "rollout_cpu_s": rollout_cpu,
            "pass_wall_s": pass_wall,
            "pass_cpu_s": pass_cpu,
        }

    def clocks(self) -> np.ndarray:
        """`clocks` once the device has done what it was given."""
        synchronize(self.lm.device)
        return clocks()

    @torch.no_grad()
    def prefill(self) -> None:
        """The part of a rollout that is not decoding."""
        prefill(self.lm, self.prompts)

    @torch.no_grad()
    def decode_products(self, multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = product) -> None:
        """T decode steps with nothing but their matrix products with the weights, one after another."""
        weights = [module.weight for module in self.lm.model.modules() if isinstance(module, nn.Linear)]
        inputs = {w.shape[1]: torch.randn(self.load.rows, w.shape[1]).to(w) for w in weights}
        for _ in range(self.load.new_tokens):
            for weight in weights:
                multiply(inputs[weight.shape[1]], weight)

    def torch_products(self) -> None:
        """The same, multiplied as PyTorch does it by itself."""
        self.decode_products(F.linear)

    @torch.no_grad()
    def mixture_products(self) -> None:
        """The product that a soft step has and a hard one has not, T - 1 times: weights over the vocabulary times E."""
        p_NV = torch.rand(self.load.rows, self.size.vocabulary, device=self.lm.device)
        embedding_VD = self.lm.embedding_VD.float()
        for _ in range(self.load.new_tokens - 1):
            product(p_NV, embedding_VD.mT)

    @torch.no_grad()
    def large_products(self) -> None:
        """Matrix products as large as those of a training pass: `LARGE_ROWS` rows through every weight of the body."""
        weights = [module.weight for module in self.lm.model.base_model.modules() if isinstance(module, nn.Linear)]
        inputs = {w.shape[1]: torch.randn(LARGE_ROWS, w.shape[1]).to(w) for w in weights}
        for weight in weights:
            product(inputs[weight.shape[1]], weight)

    def back_propagate_through(self) -> None:
        """Goes forwards and backwards through the whole CoT, as Coconut does, without noise.

        What is fed depends on the states before it, and the loss, the log-probability of a token behind the CoT,
        reaches all of them.
        """
        lm, tokens = self.lm, self.tokens["soft"]
        self.optimizer.zero_grad()
        prompts = [prompt for prompt in self.prompts for _ in range(self.load.samples)]
        hidden_ND, cache, mask_NP, lengths = prefill(lm, prompts, NO_BEGINNING)
        for step in range(self.limits.max_cot_tokens):
            x_ND = mix(logits_fp32(hidden_ND, lm.head_VD), lm.embedding_VD, tokens.mode.temperature)
            mask_NP = torch.cat([mask_NP, mask_NP.new_ones(len(mask_NP), 1)], 1)
            hidden_ND = lm.hidden(x_ND[:, None], mask_NP[:, None, None], (lengths + step)[:, None], cache)[:, 0]
        last = torch.full((len(prompts),), EOS, device=lm.device)
        torch.autograd.backward(log_prob(logits_fp32(hidden_ND, lm.head_VD), last, 1.0).mean())


LARGE_ROWS = 2048


def make_generate(size: Size, load: Load) -> tuple[Callable[[], None], str]:
    """transformers' `generate()` sampling T tokens for each of B x G rows, and the digest of its work."""
    model, prompts = random_llama(size), make_prompts(size, load)
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def once() -> None:
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_return_sequences=load.samples,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=load.new_tokens,
            max_new_tokens=load.new_tokens,
        )
        new = out[:, width:]
        assert new.shape == (load.rows, load.new_tokens) and not (new == EOS).any(), "T tokens a row, no EOS"

    return once, digest(model, prompts)


def make_trl(size: Size, load: Load, folder: str, steps: int = 1000, callbacks: Sequence[Any] = ()) -> tuple[Any, str]:
    """TRL's trainer on the same work, with nothing on top of its loss, and the digest of that."""
    from datasets import Dataset
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    model, prompts = random_llama(size), make_prompts(size, load)

    def rewards(completion_ids: list[list[int]], **columns: Any) -> Any:
        texts = [" ".join(f"w{i}" for i in prompt) for prompt in prompts for _ in range(load.samples)]
        assert columns["prompts"] == texts, "the step's prompts are ours, G times each"
        assert {len(ids) for ids in completion_ids} == {load.new_tokens}, "T tokens a row"
        return [reward(ids) for ids in completion_ids]

    config = RLOOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=load.rows // load.trl_batches,
        gradient_accumulation_steps=load.trl_batches,
        num_generations=load.samples,
        beta=0.0,
        num_iterations=1,
        report_to="none",
        save_strategy="no",
        shuffle_dataset=False,
        learning_rate=LEARNING_RATE,
        max_grad_norm=1.0,
        temperature=1.0,
        max_completion_length=load.new_tokens,
        max_steps=steps,
        disable_tqdm=True,
        logging_strategy="no",
        generation_kwargs={"min_new_tokens": load.new_tokens},
    )
    trainer: Any = RLOOTrainer(
        model=model,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in prompt) for prompt in prompts]}),
        processing_class=word_tokenizer(size.vocabulary, eos=True),
        callbacks=list(callbacks),
    )
    return trainer, digest(trainer.model, prompts)
