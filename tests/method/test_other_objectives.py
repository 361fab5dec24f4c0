"""The other objectives: GRPO and PPO-clip are the published losses, bonus and KL term are what they say.

Nothing of it moves what RLOO makes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softtok.config.grid import Grid
from softtok.config.load import load
from softtok.config.settings import RuntimeSettings, TokenMode, TrainingSettings
from softtok.errors import UserError
from softtok.method.objectives import group_advantages, leave_one_out, objective_of
from softtok.method.terms import Experience, PassStatistics, Tiling
from softtok.method.token_modes import CotTokens, SoftTokens
from softtok.method.trajectories import Rollout
from softtok.models.language_model import LanguageModel
from softtok.storage.files import read_json
from softtok.training.train import Trainer, train
from tests.support.configurations import basic, both, put
from tests.support.gradients import MODES as OBJECTIVE_MODES
from tests.support.gradients import (
    PROMPTS,
    SAMPLES,
    SMALL_TILES,
    TILING,
    Case,
    LargestOfVocabulary,
    assert_same,
    in_double,
    make_advantages,
    make_rollout,
    naive_loss,
    run_pass,
    take_gradients,
)
from tests.support.gradients import SETTINGS as PLAIN
from tests.support.gradients import pass_gradients as gradients
from tests.support.records import fed
from tests.support.specs import HARD, SOFT
from tests.support.specs import train_spec as spec
from tests.support.tiny_models import tiny_model, token_mode
from tests.support.training_runs import lines, stopped_in_step, weights

MODES = {name: OBJECTIVE_MODES[name] for name in ("hard", "soft", "fuzzy")}
MODES["soft-top"] = MODES["soft"].model_copy(update={"top_k": 6})


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings(**({"answer_temperature": 1.3} | changes))


def make_case(mode: str, **model: Any) -> Case:
    lm = tiny_model(**model)
    tokens = token_mode(lm, MODES[mode])
    out = make_rollout(lm, tokens)
    return lm, tokens, out, make_advantages(len(out.answers))


def moved(lm: LanguageModel, by: float, seed: int = 0) -> LanguageModel:
    """A copy with other weights."""
    model, generator = copy.deepcopy(lm.model), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator) * parameter.data.abs().mean()
    return LanguageModel(model, lm.tokenizer, lm.name)


def row_logits(lm: LanguageModel, tokens: CotTokens, out: Rollout, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits before the CoT and before the answer of one row, from a plain forward."""
    embedding, prompt, cot = lm.embedding_VD, out.prompts[row // out.samples], out.cot(row)
    words, answer = out.prefill(row), out.answers[row]
    x = fed(out)[row, : len(cot)].to(embedding) if isinstance(tokens, SoftTokens) else embedding[cot]
    logits = lm.model(
        inputs_embeds=torch.cat([embedding[prompt], x, embedding[words], embedding[answer]])[None]
    ).logits[0, len(prompt) - 1 : -1]
    return logits[: len(cot)], logits[len(cot) + len(words) :]


def naive(lm: LanguageModel, loss: Callable[[LanguageModel], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of a loss of the fp64 copy."""
    exact = in_double(lm)
    loss(exact).backward()
    return {name: gradient.float() for name, gradient in take_gradients(exact).items()}


# Advantages


def test_advantages_of_grpo_are_standardised_within_a_group() -> None:
    rewards = torch.tensor([[100.0, 0.0, 10.0, 10.0], [10.0, 10.0, 10.0, 10.0]])
    advantages = group_advantages(rewards, objective_of(settings(objective="grpo")))
    wanted = (rewards[0].double() - 30) / (float(np.std([100, 0, 10, 10], ddof=1)) + 1e-4)
    torch.testing.assert_close(advantages[0].double(), wanted, rtol=1e-5, atol=0)
    assert torch.equal(advantages[1], torch.zeros(4))
    for name in ("rloo", "ppo-clip"):
        objective = objective_of(settings(objective=name))
        assert torch.equal(group_advantages(rewards, objective), leave_one_out(rewards))
        tenths = group_advantages(torch.full((2, 3), 0.1), objective)
        assert not tenths.any(), "a mean that is off by a rounding error is no reason to run a pass"


# Bonus and KL


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_entropy_bonus_is_that_of_the_cot_tokens(mode: str, objective: str) -> None:
    """Also in rows without advantage; at temperature 1; each token weighs what its log-probability weighs."""
    case = make_case(mode)
    lm, tokens, out, advantages = case
    assert (advantages == 0).any()

    def loss(exact: LanguageModel) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row, answer in enumerate(out.answers):
            before_cot, _ = row_logits(exact, tokens, out, row)
            share = 1 / len(advantages) / (1 if objective == "rloo" else len(before_cot) + len(answer))
            total = total - 0.3 * share * torch.distributions.Categorical(logits=before_cot).entropy().sum()
        return total

    bonus = naive(lm, loss)
    only_bonus = (lm, tokens, out, 0 * advantages)
    changed = settings(entropy_bonus=0.3, objective=objective)
    assert_same(gradients(only_bonus, changed), bonus)
    assert_same(gradients(only_bonus, changed, tiling=SMALL_TILES), bonus, 1e-4)
    without = gradients(case, settings(objective=objective))
    assert_same(gradients(case, changed), {name: without[name] + bonus[name] for name in bonus}, 1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tied", [True, False])
def test_kl_is_that_of_the_policies(mode: str, tied: bool) -> None:
    """The KL of hard tokens and answers is of the distributions that they are sampled from, by torch's own formula.

    That of soft ones is of the two Gaussians, the base's around its own mixture of its own E. No gradient reaches the
    reference.
    """
    lm, tokens, out, advantages = make_case(mode, tied=tied)
    reference, mode_ = moved(lm, 0.02), MODES[mode]
    kls: list[torch.Tensor] = []

    def mixture(of: LanguageModel, logits: torch.Tensor) -> torch.Tensor:
        kept = logits >= logits.topk(mode_.top_k or logits.shape[1]).values[:, -1:]
        return (logits.masked_fill(~kept, -torch.inf) / mode_.temperature).softmax(-1) @ of.embedding_VD

    def loss(exact: LanguageModel) -> torch.Tensor:
        base = in_double(reference)
        for row in range(len(out.answers)):
            pairs = list(zip(row_logits(exact, tokens, out, row), row_logits(base, tokens, out, row), strict=True))
            for part, (mine, theirs) in zip(("cot", "answer"), pairs, strict=True):
                p: torch.distributions.Distribution
                q: torch.distributions.Distribution
                if part == "cot" and isinstance(tokens, SoftTokens):
                    p = torch.distributions.Normal(mixture(exact, mine), tokens.noise_std)
                    q = torch.distributions.Normal(mixture(base, theirs).detach(), tokens.noise_std)
                    kls.append(torch.distributions.kl_divergence(p, q).sum(-1))
                else:
                    tau = 1.3 if part == "answer" else mode_.temperature
                    p, q = (torch.distributions.Categorical(logits=logits / tau) for logits in (mine, theirs.detach()))
                    kls.append(torch.distributions.kl_divergence(p, q))
        return 0.2 * torch.cat(kls).sum() / len(advantages)

    wanted = naive(lm, loss)
    changed = settings(kl_coefficient=0.2)
    only_kl = (lm, tokens, out, 0 * advantages)
    assert_same(gradients(only_kl, changed, reference=reference), wanted, 2e-4)
    assert_same(gradients(only_kl, changed, reference=reference, tiling=SMALL_TILES), wanted, 2e-4)
    assert all(parameter.grad is None for parameter in reference.model.parameters())
    seen = run_pass(only_kl, changed, reference=reference)
    assert seen.as_metrics()["kl"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-3)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_kl_to_itself_is_zero_and_pulls_nowhere(mode: str) -> None:
    case = make_case(mode)
    lm, _, out, _ = case
    twin = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
    changed = settings(kl_coefficient=0.2)
    seen = run_pass(case, changed, reference=twin)
    assert seen.kl == 0 and seen.kl_tokens == out.cot_lengths.sum() + sum(map(len, out.answers))
    assert_same(gradients(case, changed, reference=twin), gradients(case, PLAIN), 1e-5)


def test_reference_too_has_its_vocabulary_for_one_tile() -> None:
    lm = tiny_model(vocabulary=67, tied=False)
    tokens = token_mode(lm, MODES["soft"])
    out = make_rollout(lm, tokens)
    case = (lm, tokens, out, make_advantages(len(out.answers)))
    with LargestOfVocabulary(67, 32) as largest:
        changed, tiling = settings(kl_coefficient=0.1, entropy_bonus=0.1), Tiling(TILING.micro_batch_tokens, 5)
        gradients(case, changed, reference=moved(lm, 0.01), tiling=tiling)
    assert largest.rows == 5


# Ratios


def sampled_log_probs(lm: LanguageModel, tokens: CotTokens, out: Rollout, row: int) -> torch.Tensor:
    cot, answer = row_logits(lm, tokens, out, row)
    return torch.cat(
        [
            (cot / tokens.mode.temperature).log_softmax(-1)[range(len(cot)), out.cot(row)],
            (answer / 1.3).log_softmax(-1)[range(len(answer)), out.answers[row]],
        ]
    )


@pytest.mark.parametrize("objective", ["ppo-clip", "grpo"])
def test_second_update_has_the_clipped_loss(objective: str) -> None:
    """The first pass has ratios of 1, the plain policy gradient.

    Then, with other weights, it is the published loss with the first pass's log-probabilities, token by token, in fp64;
    and so in a third.
    """
    lm, tokens, out, advantages = make_case("hard", tied=False)
    changed = settings(objective=objective, updates_per_step=3, clip_range=0.15)
    once = settings(objective=objective)
    lm.model.zero_grad()
    old_NL = run_pass((lm, tokens, out, advantages), changed).log_prob_NL
    first = take_gradients(lm)
    assert_same(first, gradients((lm, tokens, out, advantages), once))
    assert run_pass((lm, tokens, out, advantages), once).log_prob_NL is None, "nobody needs them"
    before = in_double(lm)
    for seed in (1, 2):
        after = moved(lm, 0.03, seed)
        clips: list[bool] = []

        def loss(exact: LanguageModel, clips: list[bool] = clips) -> torch.Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for row, advantage in enumerate(advantages):
                new = sampled_log_probs(exact, tokens, out, row)
                ratio = (new - sampled_log_probs(before, tokens, out, row).detach()).exp()
                surrogate = []
                for r in ratio:
                    clips.append(not 0.85 < r < 1.15)
                    if advantage > 0:
                        surrogate.append(advantage * (r if r < 1.15 else r.detach() * 0 + 1.15))
                    else:
                        surrogate.append(advantage * (r if r > 0.85 else r.detach() * 0 + 0.85))
                mean = torch.stack(surrogate).sum() / (len(surrogate) if objective == "grpo" else 1)
                total = total - mean / len(advantages)
            return total

        wanted = naive(after, loss)
        assert 0.1 < np.mean(clips) < 0.9, "some ratios are clipped and some are not"
        case = (after, tokens, out, advantages)
        assert_same(gradients(case, changed, old_log_prob_NL=old_NL), wanted, 1e-4)
        assert_same(gradients(case, changed, tiling=SMALL_TILES, old_log_prob_NL=old_NL), wanted, 1e-4)
        seen = run_pass(case, changed, old_log_prob_NL=old_NL)
        rows = np.repeat(advantages != 0, [len(out.cot(row)) + len(out.answers[row]) for row in range(len(advantages))])
        assert seen.as_metrics()["clip_fraction"] == pytest.approx(np.mean(np.array(clips)[rows]), abs=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_ppo_clip_with_one_update_is_the_policy_gradient(mode: str) -> None:
    case = make_case(mode)
    plain, clipped = gradients(case, PLAIN), gradients(case, settings(objective="ppo-clip"))
    assert all(torch.equal(plain[name], clipped[name]) for name in plain)


def test_grpo_divides_by_the_sampled_tokens() -> None:
    lm, tokens, out, advantages = make_case("hard")
    lengths = np.array([len(out.cot(row)) + len(out.answers[row]) for row in range(len(advantages))])
    assert len(set(lengths)) > 3
    wanted = naive(lm, lambda exact: naive_loss(exact, tokens, out, advantages / lengths, PLAIN))
    assert_same(gradients((lm, tokens, out, advantages), settings(objective="grpo")), wanted)


@pytest.mark.parametrize("drift", [0.0, 0.03])
def test_grpo_equals_trl(drift: float, tmp_path: Path) -> None:
    """TRL's loss on the same trajectories, with the prefilled words masked as a tool's; at ratio 1 and beyond."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    def no_reward(completions: list[str], **_: Any) -> list[float | None]:
        return [0.0] * len(completions)

    lm = tiny_model(tied=False)
    tokens = token_mode(lm, TokenMode(tokens="hard", temperature=1.3))
    out = make_rollout(lm, tokens)
    rewards = torch.tensor([sum(answer) % 7 / 7 for answer in out.answers]).view(len(PROMPTS), SAMPLES)
    advantages = group_advantages(rewards, objective_of(settings(objective="grpo"))).flatten().numpy()
    changed = settings(objective="grpo", updates_per_step=2)
    old_NL = run_pass((lm, tokens, out, advantages), changed).log_prob_NL
    after = moved(lm, drift, 3)

    words = Tokenizer(models.WordLevel({str(i): i for i in range(64)}, unk_token="0"))
    trainer: Any = GRPOTrainer(
        model=copy.deepcopy(after.model), reward_funcs=no_reward,
        args=GRPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.0, epsilon=0.2,
            loss_type="grpo", per_device_train_batch_size=2, num_generations=2, temperature=1.3, report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": ["1 2", "3 4"]}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1"),
    )  # fmt: skip
    trainer.model.eval()
    rows = range(len(out.answers))
    asked = [out.prompts[row // SAMPLES] for row in rows]
    parts = [(out.cot(row), out.prefill(row), out.answers[row]) for row in rows]
    width, length = max(map(len, asked)), max(sum(map(len, part)) for part in parts)
    inputs: dict[str, Any] = {name: torch.zeros(len(asked), length, dtype=torch.long) for name in
                              ("completion_ids", "completion_mask", "tool_mask")}  # fmt: skip
    inputs["prompt_ids"] = torch.zeros(len(asked), width, dtype=torch.long)
    inputs["prompt_mask"], old = inputs["prompt_ids"].clone(), torch.zeros(len(asked), length)
    for row, (cot, prefilled, answer) in enumerate(parts):
        inputs["prompt_ids"][row, width - len(asked[row]) :] = torch.tensor(asked[row])
        inputs["prompt_mask"][row, width - len(asked[row]) :] = 1
        fed = len(cot) + len(prefilled) + len(answer)
        inputs["completion_ids"][row, :fed] = torch.tensor(cot + prefilled + answer)
        inputs["completion_mask"][row, :fed] = 1
        sampled = [*range(len(cot)), *range(len(cot) + len(prefilled), fed)]
        inputs["tool_mask"][row, sampled] = 1
        with torch.no_grad():
            old[row, sampled] = sampled_log_probs(lm, tokens, out, row)
    inputs |= {"advantages": torch.tensor(advantages), "old_per_token_logps": old}
    trainer._compute_loss(trainer.model, inputs).backward()
    wanted = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    assert_same(gradients((after, tokens, out, advantages), changed, old_log_prob_NL=old_NL), wanted, 1e-4)


# In the loop


LOOPS: dict[str, tuple[TokenMode, dict[str, Any]]] = {
    "ppo-clip": (HARD, {"objective": "ppo-clip", "updates_per_step": 2}),
    "grpo": (HARD, {"objective": "grpo", "entropy_bonus": 0.1}),
    "kl": (SOFT, {"kl_coefficient": 0.1}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_stopped_run_resumes_as_if_nothing_had_happened(
    name: str, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]
) -> None:
    """The KL stays one to the base; its first value is 0, for the first rollout is the base's own."""
    mode, training = LOOPS[name]
    wanted = spec(mode, **(training | {"steps": 4, "max_cot_tokens": 8}))
    train(wanted, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "whole")
    with stopped_in_step(3):
        train(wanted, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    train(wanted, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    expected = weights(tmp_path / "whole" / "checkpoint")
    assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path / "run" / "checkpoint").items())
    if name == "kl":
        kls = [line["kl"] for line in lines(tmp_path / "run")[1:]]
        assert kls[0] == 0 < kls[1] < kls[3]
    if name == "ppo-clip":
        assert all("clip_fraction" in line for line in lines(tmp_path / "run")[1:] if line["gradient_norm"] > 0)


def test_each_update_of_a_step_is_one_of_the_optimizer(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the log-probabilities before the first are what the ratios of the others are to."""
    trainer = Trainer(
        spec(HARD, objective="ppo-clip", updates_per_step=3), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path
    )
    accumulate = trainer.accumulate
    passes: list[tuple[torch.Tensor | None, PassStatistics]] = []

    def noted(experience: Experience, terms: tuple[str, ...]) -> PassStatistics:
        passes.append((experience.old_log_prob_NL, accumulate(experience, terms)))
        return passes[-1][1]

    monkeypatch.setattr(trainer, "accumulate", noted)
    with trainer.judge:
        trainer.take_step(1)
    assert {int(state["step"]) for state in trainer.optimizer.adamw.state.values()} == {3}
    before = [old_NL for old_NL, _ in passes]
    first_NL = passes[0][1].log_prob_NL
    assert first_NL is not None and before[0] is None
    assert len(before) == 3 and all(old_NL is first_NL for old_NL in before[1:])


def test_divergence_in_a_later_update_is_recorded(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from softtok.training import optimizer

    norms = iter([1.0, 1.0, 1.0, float("inf")])
    monkeypatch.setattr(optimizer.MasterAdamW, "gradient_norm", lambda self: next(norms))
    changed = spec(HARD, objective="ppo-clip", updates_per_step=2, validate_every=6)
    train(changed, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    assert read_json(tmp_path / "run" / "manifest.json")["diverged"] == {"step": 2, "reason": "gradient norm is inf"}


def test_only_checkpoints_in_the_range_compete(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps, best in (([3, 5], (4, 20.0)), ([4, 6], (6, 30.0)), ([2, 4], (2, 90.0)), (None, (2, 90.0))):
        scores = iter([95.0, 90.0, 20.0, 30.0])  # the base, then steps 2, 4 and 6
        monkeypatch.setattr(Trainer, "validate", lambda self, scores=scores: next(scores))
        changed = spec(checkpoint_steps=steps, samples_per_prompt=2, max_cot_tokens=4)
        train(changed, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / str(steps))
        manifest = read_json(tmp_path / str(steps) / "manifest.json")
        assert (manifest["best_step"], manifest["best_validation"]) == best
        assert len([line for line in lines(tmp_path / str(steps)) if "validation" in line]) == 4


# The configuration


REFUSED = {
    "grpo of soft tokens": (put("training_modes/soft/training", {"objective": "grpo"}), "soft.training.objective: 'gr"),
    "ppo-clip of Gumbel tokens": (
        both(
            put("training_modes/soft", {"tokens": "soft", "noise": "gumbel"}),
            put("training", {"objective": "ppo-clip"}),
            put("training_modes/hard/training", {"objective": "rloo"}),
        ),
        "forms importance ratios, and those of soft CoT tokens are unsound",
    ),
    "several updates of RLOO": (put("training", {"updates_per_step": 2}), "hard.training.objective: 'rloo' has no rat"),
    "KL of argmax tokens": (
        put(
            "training_modes/hard",
            {"tokens": "hard", "temperature": 0.0, "training": {"cot_term": False, "kl_coefficient": 0.1}},
        ),
        "training_modes.hard.training.kl_coefficient: the KL of argmax",
    ),
    "KL of noise elsewhere": (
        both(
            put("training_modes/soft/noise_at", "hidden"),
            put("training_modes/soft/training", {"kl_coefficient": 0.1}),
        ),
        "training_modes.soft.training.kl_coefficient: is defined for",
    ),
    "KL without noise": (
        put(
            "training_modes/soft",
            {"tokens": "soft", "temperature": 0.5, "training": {"cot_term": False, "kl_coefficient": 0.1}},
        ),
        "training_modes.soft.training.kl_coefficient: is defined for",
    ),
    "checkpoints that nobody validates": (
        put("training", {"checkpoint_steps": [11, 14], "validate_every": 5}),
        "checkpoint_steps: no validation falls in [11, 14]",
    ),
    "checkpoints backwards": (put("training", {"checkpoint_steps": [4, 2]}), "training.checkpoint_steps: [4, 2] is no"),
    "training with Mixture of Inputs": (
        put("training_modes/hard/inputs_beta", 1.0),
        "training_modes.hard.inputs_beta: is for inference only",
    ),
    "training with Soft Thinking": (
        put("training_modes/soft/end_entropy", 0.1),
        "training_modes.soft.end_entropy: is for inference only",
    ),
    "top-k of hard tokens": (put("inference_modes/hard-greedy/top_k", 5), "hard-greedy.top_k: 5 has no effect on hard"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    edit, message = REFUSED[name]
    config = basic()
    edit(config)
    with pytest.raises(UserError) as caught:
        load(config)
    text = str(caught.value)
    assert message in text and "\n" not in text and len(text) < 300


def test_the_last_step_is_validated_at_any_interval() -> None:
    config = basic()
    config["training"] = {"checkpoint_steps": [20, 20], "validate_every": 8}
    assert load(config).training_of("toy", "sums", "hard").steps == 20


def test_ratios_of_answers_alone_are_possible() -> None:
    config = basic()
    config["training_modes"]["soft"]["training"] = {"objective": "ppo-clip", "updates_per_step": 2, "cot_term": False}
    assert Grid(load(config)).runs
