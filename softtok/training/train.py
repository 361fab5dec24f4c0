"""The training loop of one run: roll out, reward, update; validate; keep the best checkpoint; save and resume.

Everything a step does is a function of the spec, the step's number and the weights, so a resumed run repeats what an
uninterrupted one does. Progress lives in `.state/`, which Snakemake does not know of and so does not delete; the
outputs appear at the end.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softtok.config.settings import RuntimeSettings, TrainingSettings
from softtok.config.specs import Divergence, RunManifest, RunSpec
from softtok.errors import UserError
from softtok.method.batches import Problem, batches, grade, read_problems, rms_prompts, shuffled
from softtok.method.dry_check import dry_check
from softtok.method.noise_units import embedding_rms, state_rms
from softtok.method.objectives import group_advantages
from softtok.method.policy_gradient import TERMS, Experience, Loss, PassStatistics, Tiling, accumulate_gradients
from softtok.method.rollout import rollout
from softtok.method.stopping import TextRules
from softtok.method.token_modes import bind, greedy
from softtok.method.trajectories import STOPS, Batch, Limits, Policy
from softtok.models.devices import PRECISIONS, announce, device_name
from softtok.models.language_model import refuse_longer
from softtok.models.loading import load
from softtok.problems.dry_check import check_reward
from softtok.problems.reward import Judge
from softtok.storage.files import (
    canonical_json,
    content_hash,
    file_sha256,
    read_manifest,
    write_json,
    write_text,
)
from softtok.storage.locks import Interruption, exclusive_lock
from softtok.storage.progress import progress
from softtok.storage.provenance import attempt, attempts, provenance
from softtok.training.checkpoint import checked_sha256, read_progress, second_names, write_progress, write_weights
from softtok.training.optimizer import MasterAdamW, learning_rate

VALIDATION_SLICE = "validation"  # the key of its shuffle: the same problems are held out for every seed and mode
FEWEST_TOKENS = 256  # of a micro-batch, below which a GPU is too small for the model


def prompts_of_step(step: int, problems: list[Problem], settings: TrainingSettings, seed: int) -> list[Problem]:
    """The B problems of a step (1, 2, ...): each epoch is a shuffle of its own; a step may span two."""
    chosen = []
    for place in range((step - 1) * settings.prompts_per_step, step * settings.prompts_per_step):
        epoch, offset = divmod(place, len(problems))
        chosen.append(problems[shuffled(len(problems), f"epoch {epoch} seed {seed}")[offset]])
    return chosen


class Trainer:
    """One run in progress: its model, optimizer, data and best checkpoint so far."""

    def __init__(self, spec: RunSpec, runtime: RuntimeSettings, model: Path, data: Path, out: Path):
        if spec.mode is None or spec.training is None or spec.grading is None:
            raise UserError(
                "this is the spec of an untouched model, which is not trained; `softtok base` makes its run"
            )
        self.started, self.spent_s = time.monotonic(), 0.0  # of this attempt; what earlier ones took
        self.spec, self.runtime, self.out, self.state = spec, runtime, out, out / ".state"
        self.settings, self.seed = spec.training, spec.seed
        base = read_manifest(model / "model.json")
        self.lm = load(model, runtime)
        announce(self.lm.device, self.lm.dtype)
        self.reference = load(model, runtime) if self.settings.kl_coefficient > 0 else None  # stays as it is
        problems = read_problems(data, self.lm, spec.model.prompt, columns=spec.grading.wants_columns)
        # Of the base, before any step, whatever the mode: tests may place noise where training did not.
        self.rms = {
            "embedding": embedding_rms(self.lm.embedding_VD), **state_rms(self.lm, rms_prompts(problems)),
        }  # fmt: skip
        rules = TextRules(self.lm, spec.grading.answer_format)
        limits = self.limits(self.settings.answer_temperature)
        self.policy = Policy(self.lm, rules, bind(spec.mode, self.rms), limits)
        self.greedy = Policy(self.lm, rules, bind(greedy(spec.mode), self.rms), self.limits(0.0))
        longest = max(len(problem.prompt) for problem in problems) + self.policy.most_steps
        refuse_longer(self.lm, longest, f"train set {data}")
        self.tiling = Tiling.of(runtime)
        held_out = set(shuffled(len(problems), VALIDATION_SLICE)[: self.settings.validation_problems].tolist())
        self.validation = [problems[i] for i in sorted(held_out)]
        self.problems = [problem for i, problem in enumerate(problems) if i not in held_out]
        if len(self.problems) < self.settings.prompts_per_step:
            raise UserError(
                f"train set {data}: {len(problems)} problems leave {len(self.problems)} to train on after"
                f" validation_problems: {self.settings.validation_problems}; lower it or add problems"
            )
        masters_on = None if runtime.optimizer_device == "same" else runtime.optimizer_device
        self.optimizer = MasterAdamW(self.lm.model, self.settings, masters_on)
        self.judge = Judge(
            workers=runtime.reward_workers,
            reward_correct=self.settings.reward_correct,
            reward_boxed=self.settings.reward_boxed,
            grading=spec.grading,
        )
        made_of = {"spec": spec.model_dump(mode="json"), "model": base["sha256"], "data": file_sha256(data)}
        self.key = content_hash(made_of, 64)
        self.step = 0
        self.best: dict[str, Any] = {"step": None, "validation": -math.inf}
        self.spoken_of: Path | None = None  # the weights that `progress.pt` takes for the best
        self.lines: list[dict[str, Any]] = []
        self.diverged: Divergence | None = None

    def limits(self, answer_temperature: float) -> Limits:
        s = self.settings
        return Limits(s.max_cot_tokens, s.max_answer_tokens, answer_temperature, s.stop_on)

    def validate(self) -> float:
        """Greedy accuracy in percent on the held-out problems, in the run's own mode without noise."""
        correct, rules = 0, self.greedy.rules
        for part in batches(self.validation, 1, self.greedy.most_steps, self.runtime):
            out = rollout(self.greedy, Batch([p.prompt for p in part], 1, [p.id for p in part]))
            correct += sum(verdict.correct for verdict in grade(self.judge, rules, out, part))
        return 100 * correct / len(self.validation)

    def take_step(self, step: int) -> dict[str, Any]:
        """One step: a rollout and its updates; returns its metrics. Raises FloatingPointError when logits or a gradient
        are not finite.
        """
        settings, started = self.settings, time.perf_counter()
        part = prompts_of_step(step, self.problems, settings, self.seed)
        keys = [
            f"train|{self.seed}|{step}|{b}|{p.id}|{g}"
            for b, p in enumerate(part)
            for g in range(settings.samples_per_prompt)
        ]
        batch = Batch([p.prompt for p in part], settings.samples_per_prompt, keys)
        out = rollout(self.policy, batch, record=True)
        thinking = np.arange(out.cot_ids.shape[1]) < out.cot_lengths[:, None]
        entropy = float(out.entropy_NT.cpu().numpy()[thinking].mean())
        if not math.isfinite(entropy):
            raise FloatingPointError(f"entropy of the CoT is {entropy}")
        rolled_out = time.perf_counter()
        verdicts = grade(self.judge, self.policy.rules, out, part)
        rewarded = time.perf_counter()
        rewards_BG = torch.tensor([v.reward for v in verdicts]).view(len(part), -1)
        advantages_N = group_advantages(rewards_BG, self.loss.objective).flatten().numpy()
        experience = Experience(out, advantages_N)
        norms = {}
        if step % settings.validate_every == 0:
            for term in ("cot", "answer"):
                self.accumulate(experience, (term,))
                norms[f"gradient_norm_{term}"] = self.optimizer.gradient_norm()
        for _ in range(settings.updates_per_step):
            seen = self.accumulate(experience, TERMS)
            norm = self.optimizer.gradient_norm()
            if not math.isfinite(norm):
                raise FloatingPointError(f"gradient norm is {norm}")
            self.optimizer.step(step, norm)
            if experience.old_log_prob_NL is None:
                experience = Experience(out, advantages_N, seen.log_prob_NL)
        return {
            "step": step,
            "reward": rewards_BG.mean().item(),
            "correct": 100 * float(np.mean([v.correct for v in verdicts])),
            "boxed": 100 * float(np.mean([v.boxed is not None for v in verdicts])),
            "cot_tokens": float(out.cot_lengths.mean()),
            "answer_tokens": float(np.mean([len(answer) for answer in out.answers])),
            "stopped": 100 * float(np.mean(out.stops == STOPS.index("phrase"))),
            "entropy": entropy,
            "learning_rate": learning_rate(step, settings),
            "gradient_norm": norm,
            **norms,
            **seen.as_metrics(),
            "near_ties": int(out.near_ties.sum()),
            "rollout_s": rolled_out - started,
            "reward_s": rewarded - rolled_out,
            "update_s": time.perf_counter() - rewarded,
        }

    @property
    def loss(self) -> Loss:
        return Loss(self.settings, self.tiling, self.reference)

    def accumulate(self, experience: Experience, terms: tuple[str, ...]) -> PassStatistics:
        """Forms the gradient of this rollout alone.

        A GPU whose memory does not hold a micro-batch gets halves from then on: gradients do not depend on it.
        """
        while True:
            self.optimizer.zero_grad()
            try:
                return accumulate_gradients(
                    self.lm, self.policy.tokens, experience, self.loss, terms, self.optimizer.gradients
                )
            except torch.OutOfMemoryError:
                tokens = self.tiling.micro_batch_tokens // 2
                if tokens < FEWEST_TOKENS:
                    raise
            torch.cuda.empty_cache()
            self.tiling = Tiling(tokens, min(self.tiling.tile_tokens, tokens // 8))
            less = f"micro_batch_tokens: {tokens}, tile_tokens: {self.tiling.tile_tokens}"
            print(f"softtok: out of memory in step {self.step + 1}; going on with {less}")

    def run(self, interruption: Interruption) -> None:
        """Takes the remaining steps; stops early, with the fact noted, when training diverges."""
        self.resume()
        if self.step == 0 and not self.lines:
            # The base's own accuracy is the line to beat. It does not compete: a run's result is a trained model.
            self.lines.append({"step": 0, "validation": self.validate()})
        with progress("train", self.settings.steps, self.step) as advance:
            while self.step < self.settings.steps and self.diverged is None:
                try:
                    line = self.take_step(self.step + 1)
                except FloatingPointError as error:
                    self.diverged = Divergence(step=self.step + 1, reason=str(error))
                    break
                self.step += 1
                last = self.step == self.settings.steps
                if self.step % self.settings.validate_every == 0 or last:
                    line["validation"] = self.validate()
                    first, final = self.settings.checkpoint_steps or (0, self.settings.steps)
                    # Of equals the one trained longer.
                    if first <= self.step <= final and line["validation"] >= self.best["validation"]:
                        self.best = {"step": self.step, "validation": line["validation"]}
                        self.save_weights()
                self.lines.append(line)
                advance(1, reward=line["reward"], validation=self.best["validation"])
                # Not at every validation: with the optimizer's state it is 12 bytes a parameter. The end is `finish`'s.
                if (self.step % self.runtime.save_every == 0 and not last) or interruption.signal is not None:
                    self.save()
                    interruption.exit_if_asked()

    @property
    def best_folder(self) -> Path:
        """Where the weights of the best step are, or of a run that diverged before any was validated. Every step has a
        folder of its own: a job that is killed before it saves leaves the one that `progress.pt` speaks of.
        """
        return self.state / f"best-{self.best['step'] or 0}"

    def save_weights(self) -> None:
        """The weights as they are now are the best."""
        self.best["sha256"] = write_weights(self.best_folder, self.lm)
        self.forget(self.best_folder, self.spoken_of)

    def save(self, done: bool = False) -> None:
        """Everything `resume` needs, in one file. The optimizer's state is left out when all steps are done."""
        progress_now = {
            "key": self.key,
            "step": self.step,
            "best": self.best,
            "lines": self.lines,
            "diverged": self.diverged and self.diverged.model_dump(),
            "wall_s": self.wall_s,
        }
        state, needed = (None, 0) if done else (self.optimizer.state(), 12 * self.lm.model.num_parameters())
        write_progress(self.state / "progress.pt", progress_now | {"optimizer": state}, needed)
        self.spoken_of = self.best_folder
        self.forget(self.best_folder)

    def forget(self, *but: Path | None) -> None:
        """Removes weights of other steps than these, and what a killed job left half written."""
        for path in self.state.iterdir():
            if path.name.startswith("best-") and path not in but:
                shutil.rmtree(path)
            elif path.suffix == ".tmp":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def wall_s(self) -> float:
        """What the run has taken so far, in seconds, up to the last save of attempts that ended early."""
        return self.spent_s + time.monotonic() - self.started

    def resume(self) -> None:
        """Goes on from `.state/progress.pt` if that belongs to this very spec, model and data."""
        path = self.state / "progress.pt"
        saved = read_progress(path)
        if saved is not None and saved["key"] != self.key:
            print(f"softtok: {path} belongs to another spec, model or data; starting afresh")
            saved = None
        if saved is None:
            self.forget()
            return
        self.step, self.best, self.lines, self.diverged = (
            saved["step"],
            saved["best"],
            saved["lines"],
            saved["diverged"] and Divergence(**saved["diverged"]),
        )
        self.spent_s = saved["wall_s"]
        if saved["optimizer"] is not None:
            self.optimizer.load_state(saved["optimizer"])
        if saved["optimizer"] is None or self.best["step"] is not None:
            self.spoken_of = self.best_folder
        self.forget(self.spoken_of)
        print(f"softtok: resuming after step {self.step}")

    def finish(self) -> None:
        """Writes the run's outputs; the manifest comes last. Doing it again does no harm and costs no steps: Snakemake
        deletes the outputs of a job that failed, or whose end it did not see, and what they are made of stays in
        .state/ (the weights as second names of the checkpoint's files).
        """
        if self.best["step"] is None and not self.best_folder.exists():
            self.save_weights()  # diverged before the first validation: what there is
        sha256 = checked_sha256(self.best_folder, self.best["sha256"])
        self.save(done=True)
        checkpoint = self.out / "checkpoint"
        second_names(self.best_folder, checkpoint)
        write_json(
            checkpoint / "checkpoint.json",
            {
                "sha256": sha256,
                "embedding_rms": self.rms["embedding"],
                "state_rms": {name: self.rms[name] for name in ("hidden", "logits")},
                "prompt": self.spec.model.prompt,
                "seed": self.seed,
            },
        )
        write_text(self.out / "metrics.jsonl", "".join(canonical_json(line) + "\n" for line in self.lines))
        manifest = RunManifest(
            spec=self.spec,
            steps=self.step,
            best_step=self.best["step"],
            best_validation=self.best["validation"] if self.best["step"] is not None else None,
            diverged=self.diverged,
            checkpoint_sha256=sha256,
            wall_s=self.wall_s,
            attempts=attempts(self.state / "attempts.jsonl"),
            provenance=provenance(device_name(str(self.lm.device)), PRECISIONS[self.lm.dtype]),
        )
        write_json(self.out / "manifest.json", manifest.model_dump(mode="json"))


def train(spec: RunSpec, runtime: RuntimeSettings, model: Path, data: Path, out: Path) -> None:
    """Trains one run and writes checkpoint/, metrics.jsonl and manifest.json into the folder `out`.

    Where another process is at this very run (a job may outlive the Snakemake that started it), it waits, and then
    finds the run finished, or goes on with it.
    """
    state = out / ".state"
    with (
        Interruption() as interruption,
        exclusive_lock(state / "locks" / "train", interruption),
        attempt(state / "attempts.jsonl"),
    ):
        if spec.grading is not None:
            check_reward(spec.grading, data, spec.model.prompt)
        for _ in dry_check([spec.mode] if spec.mode else [], spec.training):
            pass  # the first that does not work ends the job
        trainer = Trainer(spec, runtime, model, data, out)
        with trainer.judge:
            trainer.run(interruption)
            trainer.finish()
