"""Shows a model's thinking while it thinks (`softtok think`): the real trajectories, made by `method/rollout.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from softtok.config.doors import sampled_mode, token_mode
from softtok.config.grid import Grid
from softtok.config.load import read
from softtok.config.messages import nearest
from softtok.config.preview import asking_of
from softtok.config.schema import Config
from softtok.config.settings import RuntimeSettings, TokenMode
from softtok.errors import UserError
from softtok.evaluation.evaluate import noise_rms
from softtok.evaluation.subjects import Subject, subject
from softtok.method.batches import Problem
from softtok.method.dry_check import check_method
from softtok.method.rollout import ActiveRows, follow
from softtok.method.stopping import TextRules
from softtok.method.thoughts import TOP, Watch
from softtok.method.token_modes import bind
from softtok.method.trajectories import INFERENCE_STOPS, Batch, Limits, Policy
from softtok.models.devices import use_threads
from softtok.models.language_model import refuse_longer
from softtok.models.prompts import ask
from softtok.problems.pieces import Pieces
from softtok.problems.prompt import decode
from softtok.problems.reward import Answer, Judge
from softtok.problems.terminal import Flow, Page, Step

STOPPED = {"phrase": "at the stop phrase", "eos": "at EOS", "cap": "cut off", "entropy": "as it was sure"}


@dataclass(frozen=True)
class Wanted:
    """What is asked: a question, in which mode, how often; `top` tokens of each mixture are shown."""

    question: str
    mode: str
    golds: tuple[str, ...] = ()
    samples: int = 1
    top: int = TOP
    seed: int = 0
    cot_tokens: int | None = None  # None: as `evaluation:` has it


def thinking(
    named: str, wanted: Wanted, files: Sequence[Path], data_root: str | None, results: Path, page: Page
) -> Iterator[str]:
    """Yields what `softtok think` writes about the model of this name. Raises UserError before anything is loaded."""
    grid = Grid(read(list(files), (), data_root))
    mode = mode_of(grid.config, wanted.mode)
    if min(wanted.samples, wanted.top, 1 if wanted.cot_tokens is None else wanted.cot_tokens) < 1:
        raise UserError("--samples, --top and --cot-tokens: give a number of at least 1")
    runtime = grid.runtimes.get(named, RuntimeSettings(**grid.config.runtime.given()))
    use_threads(runtime)
    with subject(named, grid, results, runtime) as found:
        yield from think(found, wanted, mode, grid, page)


def mode_of(config: Config, name: str) -> TokenMode:
    """Returns the inference or training mode of this name. Raises UserError if there is none."""
    if name in config.inference_modes:
        return sampled_mode(config.inference_modes[name], config)
    if name in config.training_modes:
        return token_mode(config.training_modes[name], config)
    known = dict.fromkeys([*config.inference_modes, *config.training_modes])
    raise UserError(f"--mode: there is no mode {name!r}{nearest(name, known)}")


def think(subject: Subject, wanted: Wanted, mode: TokenMode, grid: Grid, page: Page) -> Iterator[str]:
    """Yields what is to be written, as soon as it is known: every sample's steps, answer and verdict."""
    check_method([mode])
    root = Path(grid.config.data_root) if grid.config.data_root else None
    asking = asking_of(None, subject.checkpoint.asks, None, root)
    (text,), (prompt,) = ask(subject.lm, asking, [wanted.question])
    rms = noise_rms(subject.lm, subject.checkpoint, [mode], [Problem("", prompt, [], text)])
    settings = grid.config.evaluation
    limits = Limits(wanted.cot_tokens or settings.max_cot_tokens, settings.max_answer_tokens, 0.0, settings.stop_on)
    policy = Policy(subject.lm, TextRules(subject.lm), bind(mode, rms), limits)
    refuse_longer(subject.lm, len(prompt) + policy.most_steps, "the question")
    keys = [f"think|{wanted.seed}|{wanted.question}|{sample}" for sample in range(wanted.samples)]
    batch = Batch([prompt], wanted.samples, keys, Watch(frozenset(keys), rms["embedding"], wanted.top))
    with Judge() as judge:
        yield from _shown(policy, batch, wanted, page, judge)


def _shown(policy: Policy, batch: Batch, wanted: Wanted, page: Page, judge: Judge) -> Iterator[str]:
    """Yields the samples one after the other; all think side by side, and later ones are caught up with."""
    sample, view = 0, Sample(policy, page)
    yield view.opening(0, wanted)
    for rows in follow(policy, batch):
        while sample < batch.samples:
            yield from view.news(rows, sample)
            if not rows.progress(sample)[1]:
                break
            yield view.closing(rows, sample, wanted, judge)
            sample, view = sample + 1, Sample(policy, page)
            if sample < batch.samples:
                yield view.opening(sample, wanted)


class Sample:
    """The thinking of one sample, as far as it was shown."""

    def __init__(self, policy: Policy, page: Page) -> None:
        self.policy, self.page = policy, page
        self.pieces, self.flow = Pieces(policy.lm.tokenizer), Flow(page.columns)
        self.shown = 0  # CoT steps

    def opening(self, sample: int, wanted: Wanted) -> str:
        """Returns what is written above the sample."""
        title = self.page.strong(f"sample {sample + 1} of {wanted.samples}, {wanted.mode}")
        return f"{title}\n{self.page.heading()}\n" if self.policy.tokens.known_mixture else f"{title}\n"

    def news(self, rows: ActiveRows, sample: int) -> Iterator[str]:
        """Yields the steps that were made since."""
        made, _ = rows.progress(sample)
        for step in range(self.shown, made):
            piece = self.pieces.add(int(rows.out.cot_ids[sample, step]))
            if sample in rows.out.thoughts:
                yield self._soft(rows, sample, step, piece)
            else:
                yield self.flow.add(piece)
        self.shown = made

    def _soft(self, rows: ActiveRows, sample: int, step: int, piece: str) -> str:
        thought = rows.out.thoughts[sample][step]
        texts = [decode(self.policy.lm.tokenizer, [i]) for i in thought.ids]
        entropy = float(rows.out.entropy_NT[sample, step])
        lines = self.page.step(step, Step(piece, entropy, thought.moved, texts, thought.weights))
        return "".join(f"{line}\n" for line in lines)

    def closing(self, rows: ActiveRows, sample: int, wanted: Wanted, judge: Judge) -> str:
        """Returns the answer, why the CoT ended, and the verdict if there is a gold answer."""
        out = rows.out
        text = self.policy.rules.answer_text(out.prefill(sample), out.answers[sample])
        stop = STOPPED[INFERENCE_STOPS[out.stops[sample]]]
        ended = f"stopped {stop}" if stop != "cut off" else stop
        lines = [*self.page.text(f"answer: {text.strip()}"), f"{ended} after {self.shown} steps"]
        if wanted.golds:
            (verdict,) = judge.grade([Answer(text, wanted.golds)])
            lines.append(self.page.verdict(f"{verdict.status} (gold: {', '.join(wanted.golds)})", verdict.correct))
        left = f"{self.flow.add(self.pieces.rest())}\n" if self.flow.at else ""
        return left + "".join(f"{line}\n" for line in [*lines, ""])
