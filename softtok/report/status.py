"""What a study is doing now, on one screen: how many jobs are in which state, first, and then what each state needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from softtok.config.grid import Study
from softtok.config.jobs import REPORT
from softtok.config.work import Job, below, jobs_of, prepared
from softtok.report.estimate import took_s
from softtok.report.job_states import NAMES, JobState, state_of, unprepared
from softtok.storage.progress import RECENT, Note, duration

ROWS = 8  # of a state that fit on the screen
KINDS = {"train": "training", "evaluate": "test", "choices": "choice set"}
COLUMNS = ("{:>10}", "{:>9}", "{:>10}", "{:>14}")  # of the table of running jobs, after what the job is
NARROWEST = 60


@dataclass(frozen=True)
class Status:
    """The states of a study's jobs, and what is prepared for them."""

    study: str
    states: list[JobState]
    absent: int  # of what all jobs start from
    unmade: dict[str, str]  # what of that could not be made, and why
    page: Path
    results: Path

    @property
    def counts(self) -> Counter[str]:
        """The number of jobs in each state."""
        return Counter(state.name for state in self.states)

    def of(self, name: str) -> list[JobState]:
        """Returns the jobs in one state."""
        return [state for state in self.states if state.name == name]

    def lines(self, width: int = 80, rows: int | None = ROWS) -> list[str]:
        """Returns the screen: `rows` lines of each state, or all of them if it is None."""
        width = max(width, NARROWEST)
        counts = self.counts
        told = ", ".join(f"{counts[name]} {name}" for name in NAMES if counts[name])
        found = wrap(f"{self.study}: {len(self.states)} jobs: {told}", width, subsequent_indent="  ")
        if self.absent:
            found.append(f"  {self.absent} of the data sets and models that they start from are not prepared yet")
        if left := self.work_left():
            found.append(f"  {left}")
        if running := self.of("running"):
            found += ["", *running_table(running, width, rows)]
        failed = [(path, why) for path, why in self.unmade.items()]
        failed += [(label(state.job), state.why) for state in self.of("failed")]
        found += _section("failed", failed, width, rows)
        found += _section("diverged", [(label(s.job), s.why) for s in self.of("diverged")], width, rows)
        stopped = [(label(s.job), f"{s.why}{_reached(s.note)}") for s in self.of("stopped")]
        found += _section("stopped", stopped, width, rows)
        found += _section("missing", [(label(s.job), s.why) for s in self.of("missing")], width, rows)
        if waiting := self.waiting():
            found += ["", *wrap(f"waiting: {waiting}", width, subsequent_indent="  ")]
        return [*found, "", *wrap(self.next(), width, subsequent_indent="  ")]

    def waiting(self) -> str:
        """Returns what waits, by kind, and how much of it needs a training that did not finish."""
        jobs = [state.job for state in self.of("waiting")]
        kinds = Counter(KINDS[job.kind] for job in jobs)
        parts = [f"{kinds[kind]} {kind}{'s' * (kinds[kind] > 1)}" for kind in KINDS.values() if kinds[kind]]
        broken = {state.job.run.folder for state in self.of("failed") if state.job.of is None}
        behind = sum(job.of is not None and job.run.folder in broken for job in jobs)
        return ", ".join(parts) + (f"; {behind} of them need a training that failed" if behind else "")

    def next(self) -> str:
        """Returns what to do next."""
        counts = self.counts
        if counts["done"] + counts["diverged"] == len(self.states):
            if self.page.exists():
                return f"complete; the report is {self.page}"
            return f"all jobs are done; `snakemake {self.study}` makes the report"
        if counts["running"]:
            return f"`softtok tables {self.study} --partial` shows the results so far"
        return f"nothing runs now; `snakemake {self.study}` goes on"

    def work_left(self) -> str:
        """Returns how long the unfinished jobs take, one after the other; "" unless all of it is known."""
        took = self._took()
        waits = [state for state in self.states if state.name not in ("done", "diverged")]
        total = 0.0
        for state in waits:
            each, note = took.get(state.job.cost), state.note
            if state.name == "running" and note is not None and note.left_s is not None:
                total += note.left_s
            elif each is not None:
                kept = note.done / note.total if state.name == "stopped" and note is not None else 0.0
                total += each * (1 - kept)
            else:
                return ""
        return f"{duration(total)} of work left, by the times of finished jobs" if waits else ""

    def _took(self) -> dict[str, float]:
        """Returns the mean seconds of finished jobs, by `Job.cost`."""
        found: dict[str, list[float]] = {}
        for state in self.of("done"):
            if (seconds := took_s(state.job, self.results)) is not None:
                found.setdefault(state.job.cost, []).append(seconds)
        return {cost: sum(times) / len(times) for cost, times in found.items()}


def status_of(study: Study, results: Path) -> Status:
    """Returns what a study is doing."""
    states = [state_of(job, results) for job in jobs_of(study)]
    absent, unmade = unprepared(prepared(study), results)
    page = results / below(REPORT.format(study=study.name)) / "report.html"
    return Status(study.name, states, absent, unmade, page, results)


def label(job: Job) -> str:
    """Returns a job in words, with its seed."""
    return f"{job.label}, seed {job.run.seed}" if job.run.train_set else job.label


def running_table(states: Sequence[JobState], width: int, rows: int | None) -> Iterator[str]:
    """Yields a line for each running job: how far it is, its reward or percent correct, tokens/s, and the time left."""
    space = width - sum(len(column.format("")) for column in COLUMNS) - 2
    yield f"{'running':<{space + 2}}" + _columns(("at", "reward*", "tokens/s", "left"))
    for state in states[:rows]:
        yield f"  {_shortened(label(state.job), space):<{space}}{_numbers(state.note)}".rstrip()
        if state.why:
            yield from wrap(state.why, width, initial_indent="    ", subsequent_indent="    ")
    if rows is not None and len(states) > rows:
        yield f"  ... and {len(states) - rows} more; `--all` shows them"
    yield f"  * mean of the last {RECENT} steps; of tests, percent correct"


def _shortened(text: str, space: int) -> str:
    """Returns a text without its middle if it is too long: what is tested stands at its start, the seed at its end."""
    head = space // 3
    return text if len(text) <= space else f"{text[:head]}...{text[len(text) - space + head + 3 :]}"


def _numbers(note: Note | None) -> str:
    if note is None:
        return _columns(("starts", "", "", ""))
    gained = note.facts.get("reward", note.facts.get("correct"))
    return _columns(
        (
            f"{note.done}/{note.total}",
            "" if gained is None else f"{gained:.3g}",
            "" if note.tokens_s is None else f"{note.tokens_s:,.0f}",
            "" if note.left_s is None else duration(note.left_s),
        )
    )


def _columns(texts: Iterable[str]) -> str:
    return "".join(column.format(text) for column, text in zip(COLUMNS, texts, strict=True))


def _reached(note: Note | None) -> str:
    return f", at {note.done} of {note.total} {note.unit}" if note is not None else ""


def _section(title: str, found: Sequence[tuple[str, str]], width: int, rows: int | None) -> list[str]:
    """Returns lines on the jobs of one state; those of which the same is to be said share it."""
    if not found:
        return []
    jobs: dict[str, list[str]] = {}
    for named, why in found:
        jobs.setdefault(why, []).append(named)
    lines = ["", title]
    for why, names in list(jobs.items())[:rows]:
        more = f" and {len(names) - 1} more" if rows is not None and len(names) > 1 else ""
        named = f"{names[0]}{more}" if rows is not None else "; ".join(names)
        lines += wrap(f"{named}: {why}", width, initial_indent="  ", subsequent_indent="    ")
    if rows is not None and len(jobs) > rows:
        lines.append(f"  ... and {len(jobs) - rows} more; `--all` shows them")
    return lines
