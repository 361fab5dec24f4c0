"""Measures the estimators of soft tokens' gradient beside each other: bias and variance at one policy.

The policy is a run's checkpoint or its base model, the prompts are those of the run's first step, and every CoT has the
same length, without a stop rule: so the exact pathwise gradient is without bias, and its mean is the reference for all.
A *rollout* is what a step of training learns from, G trajectories for each of B prompts. Half of the rollouts make the
reference, the others the estimators (`moments.py` says how they are compared). KL and entropy terms are left out.

The gradients are taken one at a time and kept as sums over blocks, on the CPU: 4 bytes a parameter for each block.

Shapes: A blocks, P parameters, M rollouts, B prompts, G samples, T CoT steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from softtok.config.jobs import DATA, MODEL
from softtok.config.manifests import CheckpointManifest, RunManifest, read
from softtok.config.settings import RuntimeSettings, TokenMode, TrainingSettings
from softtok.config.specs import RunSpec
from softtok.errors import UserError
from softtok.method.batches import grade, training_problems
from softtok.method.dry_check import check_method
from softtok.method.noise_units import embedding_rms
from softtok.method.objectives import group_advantages, objective_of
from softtok.method.policy_gradient import accumulate_gradients
from softtok.method.rollout import rollout
from softtok.method.stopping import TextRules
from softtok.method.terms import TERMS, Experience, Loss, PassStatistics, Tiling
from softtok.method.token_modes import bind
from softtok.method.trajectories import Batch, Limits, Policy
from softtok.models.devices import announce
from softtok.models.language_model import refuse_longer
from softtok.models.loading import load
from softtok.problems.dry_check import check_reward
from softtok.problems.prompting import Prompting, asking
from softtok.problems.reward import Grading, Judge
from softtok.problems.spec import DataSpec
from softtok.storage.files import text_hash
from softtok.storage.progress import progress
from softtok.training.moments import Comparison, Half, described
from softtok.training.optimizer import MasterAdamW
from softtok.training.train import prompts_of_step, split

MOST_BLOCKS = 8
FEWEST_ROLLOUTS, FEWEST_STEPS = 8, 2
CHUNK = 1 << 20  # numbers of a vector that are in fp64 at a time
QUANTILES = (0.5, 0.9, 0.99, 1.0)
CURVE = tuple(np.geomspace(1, 10_000, 41).tolist())  # numbers of rollouts whose mean's cosine is told


class Request(NamedTuple):
    """What to measure: a run's checkpoint or its base model, with M rollouts whose CoTs have T tokens."""

    run: Path
    base: bool
    data: Path | None
    rollouts: int
    cot_tokens: int
    seed: int


@dataclass(frozen=True)
class Estimator:
    """A way to the gradient, as settings of a training."""

    estimator: str
    adjoint_iterations: int = 0
    cot_term: bool = True

    def of(self, settings: TrainingSettings) -> TrainingSettings:
        """Returns the settings with this estimator, and with the reward's terms alone."""
        return settings.model_copy(update=vars(self) | {"entropy_bonus": 0.0, "kl_coefficient": 0.0})


ESTIMATORS = {
    "score": Estimator("score"),
    "pathwise K=0": Estimator("pathwise", 0),
    "pathwise K=1": Estimator("pathwise", 1),
    "pathwise K=2": Estimator("pathwise", 2),
    "answer only": Estimator("score", cot_term=False),
}


class Trained(NamedTuple):
    """What the spec of a training run says, each part of it given."""

    spec: RunSpec
    mode: TokenMode
    settings: TrainingSettings
    grading: Grading


def trained(run: Path) -> Trained:
    """Returns the spec of a finished run. Raises UserError unless a gradient goes through its soft thoughts."""
    if not (run / "manifest.json").is_file():
        raise UserError(f"{run} has no manifest.json; name the folder of a finished training run")
    spec = read(RunManifest, run / "manifest.json").spec
    if spec.mode is None or spec.training is None or spec.grading is None:
        raise UserError(f"{run}: is an untouched model; name a run that was trained in a soft mode")
    for key, why in spec.mode.no_path():
        raise UserError(f"{run}: was trained with mode.{key}: {getattr(spec.mode, key)}; {why}; name a soft run")
    if spec.training.objective != "rloo":
        raise UserError(
            f"{run}: was trained with objective: {spec.training.objective}; estimators are compared on rloo"
        )
    pathwise = ESTIMATORS["pathwise K=2"].of(spec.training)
    check_method([spec.mode], pathwise)
    return Trained(spec, spec.mode, pathwise, spec.grading)


def results_of(run: Path, path: str) -> Path:
    """Returns where a path of `config/jobs.py` lies in the results folder that holds a run."""
    return run.resolve().parents[4].joinpath(*Path(path).parts[1:])


def found(request: Request, spec: RunSpec) -> tuple[Path, Path]:
    """Returns the folder of the weights, and the prepared train set. Raises UserError if one is missing."""
    model, train_set = request.run.resolve().parts[-4:-2]
    weights = request.run / "checkpoint"
    if request.base:
        weights = results_of(request.run, MODEL.format(model=model, spec=text_hash(spec.model.as_json())))
        if not weights.is_dir():
            raise UserError(f"--base: the base model of {request.run} is not in {weights}; snakemake makes it")
    assert spec.train_set is not None, "`trained` refuses untouched models"
    data = f"{DATA.format(kind='train', name=train_set, spec=text_hash(spec.train_set.as_json()))}.parquet"
    path = request.data or results_of(request.run, data)
    if not path.is_file():
        raise UserError(f"the train set of {request.run} is not in {path}; name it: --data FILE")
    return weights, path


def shots_of(request: Request, spec: RunSpec) -> Path | None:
    """Returns the prepared train set of the examples in a run's prompts, if any. Raises UserError if it is missing."""
    shots = (spec.prompting or Prompting()).over(spec.model.asks).shots
    if not isinstance(shots, DataSpec):
        return None
    pattern = results_of(request.run, DATA.format(kind="train", name="*", spec=text_hash(shots.as_json())))
    if not (held := sorted(pattern.parent.glob(f"{pattern.name}.parquet"))):
        raise UserError(
            f"the examples in the prompts of {request.run} are not in {pattern}.parquet; snakemake makes it"
        )
    return held[0]


class Bench:
    """A policy on fixed prompts, of which rollouts and their gradients are taken."""

    def __init__(self, request: Request, run: Trained, runtime: RuntimeSettings):
        self.request, self.settings = request, run.settings
        weights, data = found(request, run.spec)
        checkpoint = read(CheckpointManifest, request.run / "checkpoint" / "checkpoint.json")
        asked = asking(run.spec.prompting, run.spec.model.asks, run.grading.answer_format, shots_of(request, run.spec))
        check_reward(run.grading, data, asked.template)
        self.lm = load(weights, runtime)
        self.made_on = announce(self.lm.device, self.lm.dtype)
        problems = training_problems(data, self.lm, asked, columns=run.grading.wants_columns)
        train_on, _ = split(problems, self.settings, f"train set {data}")
        self.problems = prompts_of_step(1, train_on, self.settings, run.spec.seed)
        s = self.settings
        limits = Limits(request.cot_tokens, s.max_answer_tokens, s.answer_temperature, "never")
        rms = {"embedding": checkpoint.embedding_rms or embedding_rms(self.lm.embedding_VD), **checkpoint.state_rms}
        rules = TextRules(self.lm, run.grading.answer_format)
        self.policy = Policy(self.lm, rules, bind(run.mode, rms), limits)
        longest = max(len(problem.prompt) for problem in self.problems) + self.policy.most_steps
        refuse_longer(self.lm, longest, f"train set {data}")
        self.judge = Judge(
            workers=runtime.reward_workers,
            reward_correct=s.reward_correct,
            reward_boxed=s.reward_boxed,
            grading=run.grading,
        )
        self.objective, self.tiling = objective_of(s), Tiling.of(runtime)
        self.optimizer = MasterAdamW(self.lm.model, s)  # takes no step: it adds gradients up in fp32
        self.rewards: list[float] = []

    @property
    def size(self) -> int:
        """P."""
        return sum(parameter.numel() for parameter in self.optimizer.working)

    def draw(self, number: int) -> Experience:
        """Returns one rollout with its advantages; its random numbers are keyed by its number."""
        samples, start = self.settings.samples_per_prompt, f"estimators|{self.request.seed}|{number}"
        keys = [f"{start}|{b}|{p.id}|{g}" for b, p in enumerate(self.problems) for g in range(samples)]
        out = rollout(self.policy, Batch([p.prompt for p in self.problems], samples, keys), record=True)
        verdicts = grade(self.judge, self.policy.rules, out, self.problems)
        self.rewards += [verdict.reward for verdict in verdicts]
        rewards_BG = torch.tensor([verdict.reward for verdict in verdicts]).view(len(self.problems), -1)
        advantages_N = group_advantages(rewards_BG, self.objective).flatten().numpy()
        return Experience(out, advantages_N, judged_N=np.array([verdict.judged for verdict in verdicts]))

    def gradient(self, experience: Experience, estimator: Estimator) -> tuple[torch.Tensor, PassStatistics]:
        """Returns an estimate of the gradient, (P,) on the CPU, and what its pass saw."""
        loss = Loss(estimator.of(self.settings), self.objective, self.tiling)
        self.optimizer.zero_grad()
        seen = accumulate_gradients(self.lm, self.policy.tokens, experience, loss, TERMS, self.optimizer.gradients)
        parts = [self.optimizer.gradients[parameter].flatten().cpu() for parameter in self.optimizer.working]
        gradient_P = torch.cat(parts)
        if not math.isfinite(float(gradient_P.sum())):
            raise UserError(f"model {self.lm.name}: a gradient is not finite; its weights are damaged")
        return gradient_P, seen


class BlockSums:
    """Gradients of one estimator: their sums over blocks, their products with the sums of a reference, their tails."""

    def __init__(self, rollouts: int, size: int, reference: BlockSums | None = None):
        blocks = min(MOST_BLOCKS, rollouts)
        self.blocks_n = np.arange(rollouts) % blocks
        self.sums_AP = torch.zeros(blocks, size)
        self.reference = reference
        self.squares: list[float] = []
        self.dots: list[np.ndarray] = []
        self.rows: list[torch.Tensor] = []

    def add(self, gradient_P: torch.Tensor, seen: PassStatistics) -> None:
        """Adds the gradient of the next rollout."""
        gradient_1P = gradient_P[None]
        self.sums_AP[self.blocks_n[len(self.squares)]] += gradient_P
        self.squares.append(products(gradient_1P, gradient_1P).item())
        if self.reference is not None:
            self.dots.append(products(gradient_1P, self.reference.sums_AP)[0])
        self.rows += seen.adjoint_rows

    def half(self) -> Half:
        """Returns the inner products of these gradients by block."""
        return Half(
            np.bincount(self.blocks_n), np.bincount(self.blocks_n, self.squares), products(self.sums_AP, self.sums_AP)
        )

    def comparison(self) -> Comparison:
        """Returns these gradients beside the reference."""
        assert self.reference is not None, "the reference itself is not compared"
        norms_n = np.sqrt(self.squares)
        return Comparison(self.reference.half(), self.half(), np.array(self.dots), norms_n, self.blocks_n)

    def tails(self) -> dict[str, list[float] | None]:
        """Returns quantiles of |g| by rollout and, of pathwise ones, of |lambda| / |g| and of the residual by row."""
        told: dict[str, list[float] | None] = {"norm": quantiles(np.sqrt(self.squares))}
        if self.rows:
            growth_n, residual_n = torch.cat(self.rows).numpy().T
            told |= {"growth": quantiles(growth_n), "residual": quantiles(residual_n)}
        return told


def products(left_AP: torch.Tensor, right_BP: torch.Tensor) -> np.ndarray:
    """Returns inner products of vectors, (A, B), summed in fp64 a part at a time."""
    total_AB = torch.zeros(len(left_AP), len(right_BP), dtype=torch.float64)
    for left_AC, right_BC in zip(left_AP.split(CHUNK, 1), right_BP.split(CHUNK, 1), strict=True):
        total_AB += left_AC.double() @ right_BC.double().T
    return total_AB.numpy()


def quantiles(values: np.ndarray) -> list[float] | None:
    """Returns the values at `QUANTILES`, the largest last; None if there are no values."""
    return np.quantile(values, QUANTILES).tolist() if len(values) else None


def collect(
    bench: Bench, experiences: Iterable[Experience], estimator: Estimator, sums: BlockSums, advance: Callable[..., None]
) -> BlockSums:
    """Adds the gradients of some rollouts to sums, and returns these."""
    for experience in experiences:
        sums.add(*bench.gradient(experience, estimator))
        advance(1)
    return sums


def measure(request: Request, runtime: RuntimeSettings) -> dict[str, Any]:
    """Returns what `softtok estimators` tells, as JSON (`described` in `moments.py` for each estimator).

    Raises UserError if the run, its files or the numbers asked for do not allow it.
    """
    if request.rollouts < FEWEST_ROLLOUTS:
        raise UserError(
            f"--rollouts {request.rollouts}: at least {FEWEST_ROLLOUTS} are needed, half of them for each mean"
        )
    if request.cot_tokens < FEWEST_STEPS:
        raise UserError(f"--cot-tokens {request.cot_tokens}: a path through thoughts needs at least {FEWEST_STEPS}")
    run = trained(request.run)
    bench = Bench(request, run, runtime)
    first, rest = range(request.rollouts // 2), range(request.rollouts // 2, request.rollouts)
    exact = Estimator("pathwise", request.cot_tokens - 1)
    total = len(first) + len(rest) * len(ESTIMATORS)
    with bench.judge, progress("estimators", total, unit="gradients") as shown:
        drawn = map(bench.draw, first)
        reference = collect(bench, drawn, exact, BlockSums(len(first), bench.size), shown.advance)
        kept = [bench.draw(number) for number in rest]  # much smaller than a gradient
        made = []
        for name, estimator in ESTIMATORS.items():
            sums = collect(bench, kept, estimator, BlockSums(len(rest), bench.size, reference), shown.advance)
            made.append({"name": name, **described(sums.comparison(), CURVE), "tails": sums.tails()})
    square = reference.half().mean_square
    return {
        "run": str(request.run),
        "policy": "base model" if request.base else "checkpoint",
        "prompts": [problem.id for problem in bench.problems],
        "samples_per_prompt": run.settings.samples_per_prompt,
        "rollouts": request.rollouts,
        "cot_tokens": request.cot_tokens,
        "seed": request.seed,
        "top_k": run.mode.top_k,
        "reward": float(np.nanmean(bench.rewards)) if not np.isnan(bench.rewards).all() else None,
        "made_on": bench.made_on,
        "reference": {"norm": math.sqrt(square) if square > 0 else None, "tails": reference.tails()},
        "estimators": made,
        "curve_rollouts": list(CURVE),
    }
