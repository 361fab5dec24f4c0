"""What the jobs of a study cost by counted arithmetic: operations and bytes, divided by the rates of a device.

Nothing has been measured for the study itself. How long CoTs and prompts are is assumed; `assumptions` says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from softtok.config.flops import Load, Size, body_flops, head_flops, pass_flops, prefill_flops
from softtok.config.jobs import Choices, Data, Evaluation, Run
from softtok.config.model_sizes import parameters, size_of
from softtok.config.rates import HOST_MEMORY, Rates
from softtok.config.settings import RuntimeSettings, SampledMode, TokenMode, TrainingSettings
from softtok.config.work import Costs, Job, ProblemsCost, TrainingCost, below, problems_in
from softtok.errors import UserError
from softtok.problems.prompt import PROMPT
from softtok.problems.spec import HubRows, ToyRows

COT_SHARE = 0.8  # of the cap, that the CoTs of a training take on the mean
ANSWER = 10  # tokens of an answer with the words that are prefilled before it
QUESTION, SHOT, LETTERS = 60, 60, 4  # tokens of a question and of an example; letters of a template in a token
OPTIONS, OPTION_TOKENS = 4, 150  # of a question whose options are scored one by one
NORMS = 1.7  # what a step at which the gradient's norms are measured takes, in ordinary steps
ADJOINT = 0.3  # of a pass, what the gradient through the CoT takes for each of its K + 1 iterations
PROBLEMS = 1000  # in a set of which nothing is known
SET_SIZES = {
    ("openai/gsm8k", "test"): 1319,
    ("HuggingFaceH4/MATH-500", "test"): 500,
    ("Hothan/OlympiadBench", "train"): 675,
    ("Rowan/hellaswag", "validation"): 10_042,
    ("allenai/ai2_arc", "test"): 1172,
    ("cais/mmlu", "test"): 14_042,
}
"""Problems in test sets of the hub, by path and split: before they are downloaded nothing else says it."""


def problems_of(data: Data, results: Path) -> int:
    """Returns the number of problems in a data set: as prepared, or as its settings let expect."""
    try:
        return problems_in(data, results)
    except UserError:
        source, limit = data.spec.source, data.spec.limit
    if isinstance(source, ToyRows):
        found = source.problems
    else:
        known = SET_SIZES.get((source.path, source.split)) if isinstance(source, HubRows) else None
        found = known or limit or PROBLEMS
    return min(found, limit) if limit else found


@dataclass(frozen=True)
class Counting:
    """Counts the jobs of one study on one device; `cot_tokens` is the mean length of CoTs, if the user knows it."""

    jobs: Sequence[Job]
    rates: Rates
    runtimes: Mapping[str, RuntimeSettings]
    results: Path
    cot_tokens: float | None = None
    sizes: dict[str, Size] = field(default_factory=dict)

    def size(self, run: Run) -> Size:
        """Returns the shape of a run's model."""
        if run.model.name not in self.sizes:
            self.sizes[run.model.name] = size_of(run.model, self.results)
        return self.sizes[run.model.name]

    def costs(self) -> Costs:
        """Returns what each kind of job costs."""
        found = Costs(start_s=self.rates.start_s, trainings={}, measures={})
        for job in self.jobs:
            if job.of is None and job.cost not in found.trainings:
                found.trainings[job.cost] = self._training(job)
            elif isinstance(job.of, Evaluation) and job.cost not in found.measures:
                found.measures[job.cost] = self._evaluation(job, job.of)
            elif isinstance(job.of, Choices) and job.cost not in found.measures:
                found.measures[job.cost] = self._choices(job, job.of)
        return found

    def tokens(self, job: Job) -> float:
        """Returns how many tokens a job generates, validations without."""
        if job.of is None:
            settings = job.run.spec.training
            assert settings is not None
            rows = settings.prompts_per_step * settings.samples_per_prompt
            return settings.steps * rows * self._new(settings.max_cot_tokens)
        if isinstance(job.of, Choices):
            return 0.0
        modes = job.of.spec.inference_modes.values()
        each = sum(map(_samples, modes)) * self._tested(job, job.of)
        return problems_of(job.of.data, self.results) * each

    def _new(self, cap: float) -> float:
        """Tokens of a row whose CoT may have `cap`, with its answer."""
        return (min(cap, self.cot_tokens) if self.cot_tokens else COT_SHARE * cap) + ANSWER

    def _tested(self, job: Job, of: Evaluation) -> float:
        """Tokens of a row of an evaluation: as long as CoTs become under the cap of the model's trainings."""
        settings = [one.run.spec.training for one in self.jobs if one.run.model.name == job.run.model.name]
        trained = max((each.max_cot_tokens for each in settings if each is not None), default=10**9)
        return self._new(min(of.spec.evaluation.max_cot_tokens, trained))

    def _prompt(self, job: Job) -> int:
        """Tokens of a prompt without what all of them begin with."""
        return QUESTION + len(job.run.model.spec.asks.prompt or PROMPT) // LETTERS

    def _beginning(self, job: Job) -> int:
        """Tokens of the examples, with which all prompts begin; they are computed once."""
        shots = job.run.model.spec.asks.shots
        return SHOT * (len(shots) if isinstance(shots, list) else 4 if shots else 0)

    def _fast(self, job: Job) -> Rates:
        return self.rates.of_threads(self.runtimes[job.run.model.name].threads)

    def _step_s(self, job: Job, rows: float, own: float, mode: TokenMode) -> float:
        """Returns the seconds of a decode step of so many rows, each with `own` tokens behind the prompt."""
        size, rates = self.size(job.run), self._fast(job)
        weight = rates.bytes_a_weight
        read = parameters(size) * weight + rows * own * size.layers * 2 * size.key_heads * size.head_width * weight
        mixed = 1 if mode.tokens != "hard" and mode.temperature > 1e-3 else 0
        flops = rows * (body_flops(size) + (1 + mixed) * head_flops(size))
        return max(flops / rates.decode, read / rates.memory) + size.layers * rates.layer_s

    def _training(self, job: Job) -> TrainingCost:
        settings, mode, size = job.run.spec.training, job.run.spec.mode, self.size(job.run)
        assert settings is not None and mode is not None
        rates, new, count = self._fast(job), self._new(settings.max_cot_tokens), parameters(size)
        prompt = self._prompt(job) + self._beginning(job) // settings.prompts_per_step
        load = Load(prompt, round(new), settings.prompts_per_step, settings.samples_per_prompt)
        rollout = new * self._step_s(job, load.rows, new / 2, mode) + prefill_flops(size, load) / rates.large
        step = rollout + _passes(settings) * pass_flops(size, load, _kind(mode)) / rates.large
        step += settings.updates_per_step * self._optimizer_s(job)
        rows = min(settings.validation_problems, self.runtimes[job.run.model.name].rollout_rows)
        validation = new * settings.validation_problems / rows * self._step_s(job, rows, new / 2, mode)
        validation += settings.validation_problems * self._prompt(job) * body_flops(size) / rates.large
        return TrainingCost(
            ready_s=self._load_s(job),
            step_s=step,
            measured_step_s=NORMS * step,
            validation_s=validation,
            save_s=12 * count / rates.written,
            weights_s=rates.bytes_a_weight * count / rates.written,
        )

    def _load_s(self, job: Job) -> float:
        return parameters(self.size(job.run)) * self.rates.bytes_a_weight / self.rates.written

    def _optimizer_s(self, job: Job) -> float:
        """Returns the seconds of an update: weights, moments and gradient are read and written."""
        in_host = self.rates.gpu and self.runtimes[job.run.model.name].optimizer_device == "cpu"
        return 36 * parameters(self.size(job.run)) / (HOST_MEMORY if in_host else self.rates.memory)

    def _evaluation(self, job: Job, of: Evaluation) -> ProblemsCost:
        size, rates, runtime = self.size(job.run), self._fast(job), self.runtimes[job.run.model.name]
        new, problems, prompt = self._tested(job, of), problems_of(of.data, self.results), self._prompt(job)
        room = max(1, min(runtime.rollout_rows, int(runtime.rollout_tokens / (new + prompt))))
        found = 0.0
        for mode in of.spec.inference_modes.values():
            rows = min(room, problems * _samples(mode))
            found += _samples(mode) * new / rows * self._step_s(job, rows, new / 2, mode)
            found += prompt * body_flops(size) / rates.large
        return ProblemsCost(ready_s=self._load_s(job), problem_s=found)

    def _choices(self, job: Job, of: Choices) -> ProblemsCost:
        size = self.size(job.run)
        tokens = OPTIONS * OPTION_TOKENS if of.spec.choice_format == "cloze" else OPTION_TOKENS
        flops = tokens * (body_flops(size) + head_flops(size))
        return ProblemsCost(ready_s=self._load_s(job), problem_s=flops / self._fast(job).large)

    def assumptions(self) -> Iterator[str]:
        """Yields what the numbers rest on, a line each."""
        share = f"{COT_SHARE:.0%} of the cap in training"
        yield f"CoTs have {self.cot_tokens:.0f} tokens" if self.cot_tokens else f"CoTs take {share}, also in tests"
        yield f"an answer takes {ANSWER} tokens, a question {QUESTION}, a worked example {SHOT}"
        rates = self.rates
        per = "" if rates.gpu else " a thread"
        yield (
            f"{rates.device}: {rates.large / 1e12:.3g} TFLOP/s{per} in passes, {rates.decode / 1e12:.3g} in decode"
            f" steps, {rates.memory / 1e9:.0f} GB/s from memory, {rates.layer_s * 1e3:.2g} ms a layer and step,"
            f" {rates.written / 1e9:.2g} GB/s to disk"
        )
        unknown = {job.data.name for job in self.jobs if job.of is not None and self._guessed(job.data)}
        if unknown:
            yield f"{PROBLEMS} problems each in {', '.join(sorted(unknown))}, which are not prepared yet"

    def _guessed(self, data: Data) -> bool:
        source = data.spec.source
        known = isinstance(source, HubRows) and (source.path, source.split) in SET_SIZES
        prepared = (self.results / below(f"{data.stem}.json")).exists()
        return not (known or prepared or data.spec.limit or isinstance(source, ToyRows))


def _samples(mode: SampledMode) -> int:
    return 1 if mode.deterministic else mode.samples


def _kind(mode: TokenMode) -> str:
    """Returns which of the three ways of counting a mode's products comes nearest."""
    if mode.tokens == "hard":
        return "hard"
    return "fuzzy" if mode.temperature <= 1e-3 else "soft"


def _passes(settings: TrainingSettings) -> float:
    """Returns how many teacher-forced passes with gradient a step takes; one without is a third of that."""
    adjoint = ADJOINT * (settings.adjoint_iterations + 1) if settings.estimator == "pathwise" else 0.0
    base = 1 / 3 if settings.kl_coefficient > 0 else 0.0
    return settings.updates_per_step + adjoint + base
