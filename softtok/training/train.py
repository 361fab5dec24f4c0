"""The training loop of one run: roll out, reward, update; validate; keep the best checkpoint; save and resume.

A step depends on the spec, the step's number and the weights alone, so a resumed run repeats what an uninterrupted one
does. Progress is saved in `.state/`, which Snakemake does not know and so does not delete. The outputs are written at
the end.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from softtok.config.manifests import CheckpointManifest, Divergence, ModelManifest, RunManifest, read, write
from softtok.config.settings import RuntimeSettings, TrainingSettings
from softtok.config.specs import RunSpec
from softtok.config.trackers import refuse_missing
from softtok.errors import UserError
from softtok.method.batches import (
    Problem,
    grade,
    names_of,
    problems_hash,
    reward_metrics,
    rms_prompts,
    shuffled,
    to_judge,
    training_problems,
)
from softtok.method.dry_check import check_method
from softtok.method.noise_units import embedding_rms, state_rms
from softtok.method.objectives import group_advantages, objective_of
from softtok.method.path_check import remark
from softtok.method.policy_gradient import accumulate_gradients
from softtok.method.rollout import rollout
from softtok.method.stopping import TextRules
from softtok.method.stream import Room, stream
from softtok.method.terms import TERMS, Experience, Loss, PassStatistics, Tiling
from softtok.method.token_modes import bind, greedy
from softtok.method.trajectories import STOPS, Batch, Limits, Policy, Rollout
from softtok.models.devices import PRECISIONS, announce, device_name, peak_memory_mb
from softtok.models.language_model import refuse_longer
from softtok.models.loading import load
from softtok.problems.dry_check import check_reward
from softtok.problems.prompting import asking
from softtok.problems.reward import Judge
from softtok.problems.workers import BrokenWorkersError
from softtok.storage.breaks import ended_by
from softtok.storage.files import canonical_json, content_hash, text_hash, write_text
from softtok.storage.integrity import weights_sha256
from softtok.storage.locks import Interruption, Stopped, exclusive_lock
from softtok.storage.progress import TRAINING, Progress, lock_of, note_of, progress
from softtok.storage.provenance import attempt, attempts, provenance
from softtok.storage.retries import linked_state, state_of, training_notes
from softtok.training.checkpoint import hard_linked_copy, refuse_damaged
from softtok.training.optimizer import MasterAdamW, learning_rate
from softtok.training.state import Metrics, RunState
from softtok.training.trackers import Trackers

VALIDATION_SLICE = "validation"  # key of the shuffle; every seed and mode holds out the same problems
MOST_RESIDUAL = 0.05  # of the adjoint of `estimator: pathwise`, beyond which a training warns
FEWEST_TOKENS = 256  # of a micro-batch; a GPU that cannot hold these is too small for the model


def prompts_of_step(step: int, problems: list[Problem], settings: TrainingSettings, seed: int) -> list[Problem]:
    """Returns the B problems of a step (1, 2, ...); each epoch has its own shuffle, and a step may span two."""
    chosen = []
    for place in range((step - 1) * settings.prompts_per_step, step * settings.prompts_per_step):
        epoch, offset = divmod(place, len(problems))
        chosen.append(problems[shuffled(len(problems), f"epoch {epoch} seed {seed}")[offset]])
    return chosen


def split(problems: list[Problem], settings: TrainingSettings, where: str) -> tuple[list[Problem], list[Problem]]:
    """Returns the problems to train on and the held-out ones. Raises UserError if the former do not fill a step."""
    held_out = set(shuffled(len(problems), VALIDATION_SLICE)[: settings.validation_problems].tolist())
    train_on = [problem for i, problem in enumerate(problems) if i not in held_out]
    if len(train_on) < settings.prompts_per_step:
        raise UserError(
            f"{where}: {len(problems)} problems leave {len(train_on)} to train on after"
            f" validation_problems: {settings.validation_problems}; lower it or add problems"
        )
    return train_on, [problems[i] for i in sorted(held_out)]


def cot_entropy(out: Rollout) -> float:
    """Returns the mean entropy (nats) at a rollout's CoT tokens. Raises FloatingPointError if it is not finite."""
    thinking = np.arange(out.cot_ids.shape[1]) < out.cot_lengths[:, None]
    entropy = float(out.entropy_NT.cpu().numpy()[thinking].mean())
    if not math.isfinite(entropy):
        raise FloatingPointError(f"entropy of the CoT is {entropy}")
    return entropy


class Trainer:
    """One run in progress: its model, optimizer, data and best checkpoint so far."""

    def __init__(
        self, spec: RunSpec, runtime: RuntimeSettings, model: Path, data: Path, out: Path, shots: Path | None = None
    ):
        if spec.mode is None or spec.training is None or spec.grading is None:
            raise UserError(
                "this is the spec of an untouched model, which is not trained; `softtok base` makes its run"
            )
        started = time.monotonic()
        self.spec, self.runtime, self.out = spec, runtime, out
        self.settings, self.seed = spec.training, spec.seed
        base = read(ModelManifest, model / "model.json")
        self.lm = load(model, runtime)
        self.made_on = announce(self.lm.device, self.lm.dtype)
        self.reference = load(model, runtime) if self.settings.kl_coefficient > 0 else None  # never trained
        asked = asking(spec.prompting, spec.model.asks, spec.grading.answer_format, shots)
        problems = training_problems(data, self.lm, asked, columns=spec.grading.wants_columns)
        # Of the base model, for all places of noise: evaluation may add noise where training does not.
        self.rms = {"embedding": embedding_rms(self.lm.embedding_VD)} | state_rms(self.lm, rms_prompts(problems))
        rules = TextRules(self.lm, spec.grading.answer_format)
        limits = self.limits(self.settings.answer_temperature)
        self.policy = Policy(self.lm, rules, bind(spec.mode, self.rms), limits)
        self.greedy = Policy(self.lm, rules, bind(greedy(spec.mode), self.rms), self.limits(0.0))
        longest = max(len(problem.prompt) for problem in problems) + self.policy.most_steps
        refuse_longer(self.lm, longest, f"train set {data}")
        self.tiling = Tiling.of(runtime)
        self.objective = objective_of(self.settings)  # once: an edit of a user's file does not end a running job
        self.problems, self.validation = split(problems, self.settings, f"train set {data}")
        masters_on = None if runtime.optimizer_device == "same" else runtime.optimizer_device
        self.optimizer = MasterAdamW(self.lm.model, self.settings, masters_on)
        self.judge = Judge(
            workers=runtime.reward_workers,
            reward_correct=self.settings.reward_correct,
            reward_boxed=self.settings.reward_boxed,
            grading=spec.grading,
        )
        digest = problems_hash(data, names_of(spec.grading.wants_columns))
        # Not of the file: the same problems, prepared again by another version, are no reason to start again.
        made_of = {"spec": spec.model_dump(mode="json"), "model": base.sha256, "data": digest}
        made_of |= asked.mark(spec.model.prompt)
        key = content_hash(made_of, 64)
        self.state = RunState(state_of(out, runtime.state_folder), key, self.lm, self.optimizer, started)
        self.trackers = Trackers(runtime.trackers, spec, out, key)

    def limits(self, answer_temperature: float) -> Limits:
        s = self.settings
        return Limits(s.max_cot_tokens, s.max_answer_tokens, answer_temperature, s.stop_on)

    def validate(self) -> float:
        """Returns the greedy accuracy (percent) on the held-out problems, in the run's own mode without noise.

        A problem without a verdict counts as not solved, as in evaluations.
        """
        batch = Batch([p.prompt for p in self.validation], 1, [p.id for p in self.validation])
        answers = []
        for finished in stream(self.greedy, batch, Room.of(self.runtime)):
            for b, out in finished:
                answers += to_judge(self.greedy.rules, out, [self.validation[b]])
        return 100 * sum(verdict.correct for verdict in self.judge.grade(answers)) / len(answers)

    def take_step(self, step: int) -> Metrics:
        """Takes one step of the protocol and returns its metrics.

        Raises FloatingPointError if logits or a gradient are not finite.
        """
        problems = prompts_of_step(step, self.problems, self.settings, self.seed)
        times = [time.perf_counter()]

        out = self.roll_out(step, problems)
        entropy = cot_entropy(out)
        times.append(time.perf_counter())

        verdicts = grade(self.judge, self.policy.rules, out, problems)
        times.append(time.perf_counter())

        rewards_BG = torch.tensor([verdict.reward for verdict in verdicts]).view(len(problems), -1)
        advantages_N = group_advantages(rewards_BG, self.objective).flatten().numpy()
        experience = Experience(out, advantages_N, judged_N=np.array([verdict.judged for verdict in verdicts]))

        norms = self.norms_by_term(experience) if step % self.settings.validate_every == 0 else {}
        norm, seen = self.update(step, experience)
        times.append(time.perf_counter())

        return {
            "step": step,
            **reward_metrics(verdicts),
            "cot_tokens": float(out.cot_lengths.mean()),
            "answer_tokens": float(np.mean([len(answer) for answer in out.answers])),
            "stopped": 100 * float(np.mean(out.stops == STOPS.index("phrase"))),
            "entropy": entropy,
            "learning_rate": learning_rate(step, self.settings),
            "gradient_norm": norm,
            **norms,
            **seen.as_metrics(),
            "near_ties": int(out.near_ties.sum()),
            **self.costs(times, out),
        }

    def costs(self, times: list[float], out: Rollout) -> Metrics:
        """Returns what a step cost: the seconds of its three parts, and tokens that it generated a second.

        `wall_s` is the time of the run up to here, in all its attempts, with its validations and saves.
        """
        rollout_s, reward_s, update_s = np.diff(times).tolist()
        tokens, seconds = int(out.cot_lengths.sum()) + sum(map(len, out.answers)), times[-1] - times[0]
        return {
            "rollout_s": rollout_s,
            "reward_s": reward_s,
            "update_s": update_s,
            "tokens_per_s": tokens / seconds if seconds else None,
            "wall_s": self.state.wall_s,
            "peak_memory_mb": peak_memory_mb(self.lm.device),
            "made_on": self.made_on,
        }

    def roll_out(self, step: int, problems: list[Problem]) -> Rollout:
        """Generates G trajectories for each problem of a step, and records what the loss needs."""
        samples = self.settings.samples_per_prompt
        keys = [f"train|{self.seed}|{step}|{b}|{p.id}|{g}" for b, p in enumerate(problems) for g in range(samples)]
        return rollout(self.policy, Batch([p.prompt for p in problems], samples, keys), record=True)

    def norms_by_term(self, experience: Experience) -> Metrics:
        """Returns the gradient norm of each term of the loss alone, as metrics.

        A pathwise gradient's are its direct part and the part through x; beside them is the cosine of the paper's
        estimate to the whole.
        """
        norms: Metrics = {}
        pathwise = self.settings.estimator == "pathwise"
        for term, name in (("cot", "path" if pathwise else "cot"), ("answer", "direct" if pathwise else "answer")):
            self.accumulate(experience, (term,))
            norms[f"gradient_norm_{name}"] = self.optimizer.gradient_norm()
        if pathwise:
            norms["score_cosine"] = self.score_cosine(experience)
        return norms

    def score_cosine(self, experience: Experience) -> float | None:
        """Returns the cosine of the score estimate to the pathwise one; None without a gradient.

        It is made of the norms of both and of their sum, so that no second gradient needs memory.
        """
        squares = []
        for estimators in (("score",), ("pathwise",), ("score", "pathwise")):
            self.accumulate(experience, TERMS, estimators)
            squares.append(self.optimizer.gradient_norm() ** 2)
        a, b, both = squares
        return (both - a - b) / (2 * math.sqrt(a * b)) if a * b > 0 else None

    def update(self, step: int, experience: Experience) -> tuple[float, PassStatistics]:
        """Takes the optimizer steps of one rollout; returns gradient norm and statistics of the last one.

        Once the weights have changed, it does not end early.
        """
        for done in range(self.settings.updates_per_step):
            with ended_by(None) if done else nullcontext():
                seen = self.accumulate(experience, TERMS)
            norm = self.optimizer.gradient_norm()
            if not math.isfinite(norm):
                raise FloatingPointError(f"gradient norm is {norm}")
            self.optimizer.step(step, norm)
            if experience.old_log_prob_NL is None:
                experience = replace(experience, old_log_prob_NL=seen.log_prob_NL)
        return norm, seen

    def loss(self, estimator: str) -> Loss:
        """Returns what a pass minimises, with the gradient as `estimator` has it."""
        settings = self.settings.model_copy(update={"estimator": estimator})
        return Loss(settings, self.objective, self.tiling, self.reference)

    def accumulate(
        self, experience: Experience, terms: tuple[str, ...], estimators: tuple[str, ...] = ()
    ) -> PassStatistics:
        """Computes the gradient of these terms of the loss on one rollout, or the sum of several estimates of it.

        If a micro-batch does not fit into a GPU's memory, its size is halved from then on. The gradient stays the same.
        (accelerate's find_executable_batch_size empties the GPU's cache at every call, also takes failures of cuDNN for
        a lack of memory, and ends at 0 with an error of its own.)
        """
        while True:
            self.optimizer.zero_grad()
            try:
                for estimator in estimators or (self.settings.estimator,):
                    loss = self.loss(estimator)
                    seen = accumulate_gradients(
                        self.lm, self.policy.tokens, experience, loss, terms, self.optimizer.gradients
                    )
                return seen
            except torch.OutOfMemoryError:
                tokens = self.tiling.micro_batch_tokens // 2
                if tokens < FEWEST_TOKENS:
                    raise
            torch.cuda.empty_cache()
            self.tiling = Tiling(tokens, min(self.tiling.tile_tokens, tokens // 8))
            less = f"micro_batch_tokens: {tokens}, tile_tokens: {self.tiling.tile_tokens}"
            print(f"softtok: out of memory in step {self.state.step + 1}; continuing with {less}")

    def run(self, interruption: Interruption) -> None:
        """Takes the remaining steps; stops early and notes it if training diverges."""
        state = self.state
        state.resume()
        try:
            self.take_steps(interruption)
            state.settle(wait=True)
        except (Stopped, BrokenWorkersError):
            if interruption.signal is None:
                raise
            # Weights and lines are those after the last step: no step ends early once it has changed them.
            if state.lines:
                state.save()
            state.settle(wait=True)
            interruption.exit_if_asked()
        finally:
            state.writing.join()  # else a further job of this run could start while this one still writes

    def take_steps(self, interruption: Interruption) -> None:
        """Takes the remaining steps, with their validations and saves."""
        state = self.state
        with progress("train", self.settings.steps, state.step, note=note_of(state.folder, TRAINING)) as shown:
            self.validate_if_due()
            self.trackers.log(state.lines)
            while state.step < self.settings.steps and state.diverged is None:
                try:
                    line = self.take_step(state.step + 1)
                except FloatingPointError as error:
                    state.diverged = Divergence(step=state.step + 1, reason=str(error))
                    break
                state.step += 1
                state.lines.append(line)
                self.warn_of_residual()
                self.validate_if_due()
                self.trackers.log(state.lines)
                self.show(shown, line)
                state.settle()
                # `finish` saves the end.
                if state.step != self.settings.steps and state.save_is_due(self.runtime):
                    state.save()
                interruption.exit_if_asked()

    def show(self, shown: Progress, line: Metrics) -> None:
        """Shows a step that is done."""
        rows = self.settings.prompts_per_step * self.settings.samples_per_prompt
        lengths = [line["cot_tokens"] or 0.0, line["answer_tokens"] or 0.0]
        best = {} if self.state.best.step is None else {"best validation": self.state.best.validation}
        shown.advance(1, round(rows * sum(lengths)), {"reward": line["reward"] or 0.0}, **best)

    def warn_of_residual(self) -> None:
        """Says at a validation step that the adjoint has stayed far from its fixed point since the one before."""
        state = self.state
        if state.step % self.settings.validate_every:
            return
        found = [line.get("adjoint_residual") for line in state.lines[-self.settings.validate_every :]]
        residuals = [residual for residual in found if residual is not None]
        if residuals and min(residuals) > MOST_RESIDUAL:
            print(
                f"softtok: warning: the adjoint's residual stayed above {MOST_RESIDUAL} up to step {state.step} (mean"
                f" {np.mean(residuals):.2g}); adjoint_iterations: {self.settings.adjoint_iterations} are too few"
            )

    def validate_if_due(self) -> None:
        """Validates the weights after step 0, every `validate_every` steps and the last, and notes it in the last line.

        Step 0 is the base model, for comparison. It does not compete: a run's result is a trained model.
        """
        state = self.state
        if state.step == 0:
            if not state.lines:
                state.lines.append({"step": 0, "validation": self.validate(), "made_on": self.made_on})
            return
        due = state.step % self.settings.validate_every == 0 or state.step == self.settings.steps
        if due and "validation" not in state.lines[-1]:  # a stopped job may not have come to it
            state.lines[-1]["validation"] = accuracy = self.validate()
            self.keep_best(accuracy)

    def keep_best(self, validation: float) -> None:
        """Keeps the weights if they are the best so far; of equally good ones, those trained longer."""
        first, last = self.settings.checkpoint_steps or (0, self.settings.steps)
        if first <= self.state.step <= last and validation >= self.state.best.validation:
            self.state.keep_as_best(validation)

    def finish(self) -> None:
        """Writes the run's outputs; the manifest comes last.

        Snakemake deletes the outputs of a job that failed, or whose end it did not see. Then they are written again
        from .state/, which costs no steps and little disk: the checkpoint's files are hard links to the saved weights.
        """
        state = self.state
        if state.best.step is None and not state.best_folder.exists():
            state.save_weights()  # diverged before the first validation: the weights as they are
        refuse_damaged(state.best_folder, state.best.files)
        sha256 = weights_sha256(state.best.files)
        state.save(done=True)
        checkpoint = self.out / "checkpoint"
        hard_linked_copy(state.best_folder, checkpoint)
        facts = CheckpointManifest(
            reference=None,
            sha256=sha256,
            files=dict(state.best.files),
            embedding_rms=self.rms["embedding"],
            state_rms={name: self.rms[name] for name in ("hidden", "logits")},
            prompt=self.spec.model.prompt,
            prompting=self.spec.model.prompting,
            seed=self.seed,
        )
        write(checkpoint / "checkpoint.json", facts)
        metrics = "".join(canonical_json(line) + "\n" for line in state.lines)
        write_text(self.out / "metrics.jsonl", metrics)
        manifest = RunManifest(
            spec=self.spec,
            steps=state.step,
            best_step=state.best.step,
            best_validation=state.best.validation if state.best.step is not None else None,
            diverged=state.diverged,
            checkpoint_sha256=sha256,
            metrics_sha256=text_hash(metrics, 64),
            wall_s=state.wall_s,
            attempts=attempts(state.folder / "attempts.jsonl"),
            provenance=provenance(device_name(str(self.lm.device)), PRECISIONS[self.lm.dtype]),
        )
        write(self.out / "manifest.json", manifest)


def train(
    spec: RunSpec, runtime: RuntimeSettings, model: Path, data: Path, out: Path, shots: Path | None = None
) -> None:
    """Trains one run and writes checkpoint/, metrics.jsonl and manifest.json into the folder `out`.

    `shots` is the prepared train set of the examples in prompts, if there are any.

    If another process trains this run (a job may outlive the Snakemake that started it), this one waits, and then
    continues the run or finds it finished.
    """
    refuse_missing(runtime.trackers)
    state = linked_state(out, runtime.state_folder)
    notes = training_notes(state)
    with (
        Interruption() as interruption,
        exclusive_lock(lock_of(state, TRAINING), interruption),
        attempt(notes.log, saved=notes.saved()),
    ):
        if spec.grading is not None:
            asked = asking(spec.prompting, spec.model.asks, spec.grading.answer_format, shots)
            check_reward(spec.grading, data, asked.template)
        check_method([spec.mode] if spec.mode else [], spec.training)
        if spec.mode and spec.training and (remarked := remark(spec.mode, spec.training)):
            print(f"softtok: {remarked}")
        trainer = Trainer(spec, runtime, model, data, out, shots)
        with trainer.judge, trainer.trackers:
            trainer.run(interruption)
            trainer.finish()
