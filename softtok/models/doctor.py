"""Looks at a machine before anything is downloaded, for what a study would trip over in its first minutes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap

import torch

from softtok.config.flops import Size
from softtok.config.grid import Grid, Study
from softtok.config.jobs import Model
from softtok.config.model_sizes import parameters, size_of
from softtok.config.rates import DOCTOR
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import HubSource
from softtok.errors import UserError
from softtok.models.gpu_build import build, needed_driver, why_none
from softtok.models.probes import measure
from softtok.storage import hub, machine
from softtok.storage.files import write_text

LABEL = 10  # columns of what is looked at
GPU_BYTES, HELD_OUT_BYTES = 18, 4  # a parameter, while training: all of it, or with the optimizer in the host's memory
HOST_BYTES = 16  # a parameter, of the optimizer in the host's memory
CPU_BYTES = 20  # a parameter, while training on a CPU in fp32
STATE_BYTES = 24  # a parameter: a run's saved state, twice for a moment
GIB = 2**30
LOADED = 0.75  # of the cores: more than this is in use by others


@dataclass
class Screen:
    """What was found, a line each; `!` marks what would stop a job of the study."""

    width: int
    lines: list[str] = field(default_factory=list)
    wrong: int = 0

    def say(self, what: str, text: str, wrong: bool = False) -> list[str]:
        """Adds a finding; returns its lines."""
        self.wrong += wrong
        head = f"{'!' if wrong else ' '} {what:<{LABEL}}"
        found = wrap(text, self.width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
        self.lines += found
        return found


@dataclass(frozen=True)
class Needed:
    """A model of a study: its shape (None if nothing here says it) and the machine settings of its jobs."""

    model: Model
    size: Size | None
    runtime: RuntimeSettings

    @property
    def count(self) -> int:
        return 0 if self.size is None else parameters(self.size)

    @property
    def on_gpu(self) -> bool:
        return bool(self.runtime.gpus) or self.runtime.device.startswith("cuda")

    @property
    def gpu_bytes(self) -> int:
        """What a training keeps on its card, without activations."""
        if not self.on_gpu:
            return 0
        return self.count * (HELD_OUT_BYTES if self.runtime.optimizer_device == "cpu" else GPU_BYTES)

    @property
    def host_bytes(self) -> int:
        """What a training keeps in the host's memory, without activations."""
        if self.on_gpu:
            return self.count * HOST_BYTES if self.runtime.optimizer_device == "cpu" else 0
        return self.count * CPU_BYTES


def needed(grid: Grid, study: Study, results: Path) -> list[Needed]:
    """Returns the models of a study."""
    found = []
    for model in {run.model.folder: run.model for run in study.runs.values()}.values():
        try:
            size: Size | None = size_of(model, results)
        except UserError:
            size = None
        found.append(Needed(model, size, grid.runtimes[model.name]))
    return found


def examine(grid: Grid, study: Study, results: Path, probes: bool, width: int) -> Iterator[str]:
    """Yields the lines of the screen as they are found, the probes last; keeps what these measure for the estimate."""
    models = needed(grid, study, results)
    on_gpu = any(model.on_gpu for model in models)
    screen = Screen(width)
    yield f"{study.name}: {'asks for a GPU' if on_gpu else 'runs on the CPU'}"
    for look in (_torch, _cards, _locks, _memory):
        look(screen, models)
    _disk(screen, models, study, results)
    yield from screen.lines
    screen.lines.clear()
    _hub(screen, models)
    yield from screen.lines
    if probes:
        yield from _probe(screen, models, results)
    yield f"{screen.wrong} of these would stop the study (!)" if screen.wrong else "nothing here would stop the study"


def _torch(screen: Screen, models: list[Needed]) -> None:
    least = needed_driver()
    driver = machine.driver()
    found = f"{build()}{f' (driver {least} or newer)' if least else ''}; driver here: {driver or 'none'}"
    screen.say("PyTorch", found)
    if not torch.cuda.is_available():
        wanted = any(model.on_gpu for model in models)
        if wanted:
            screen.say("GPU", f"PyTorch sees none: {why_none()}", wrong=True)


def _cards(screen: Screen, models: list[Needed]) -> None:
    found = machine.cards()
    if not found:
        screen.say("cards", "none that nvidia-smi lists")
    most = max((model.gpu_bytes for model in models), default=0)
    wants_bf16 = any(model.on_gpu and model.runtime.precision != "fp32" for model in models)
    roomy = any(card.free_mb is None or card.free_mb * 2**20 >= most for card in found)
    for card in found:
        free = "free memory unknown" if card.free_mb is None else f"{card.free_mb / 1024:.1f} GiB free"
        total = "" if card.total_mb is None else f" of {card.total_mb / 1024:.1f}"
        bf16 = {True: "bf16", False: "no bf16: precision auto is fp32", None: "bf16 unknown"}[card.bf16]
        others = "".join(f"; held by {process.told}" for process in card.processes)
        # Without bf16, weights and activations take twice the room.
        screen.say(
            f"card {card.index}", f"{card.name}: {free}{total}; {bf16}{others}", wants_bf16 and card.bf16 is False
        )
    if found and most:
        screen.say("room", f"a training keeps {most / GIB:.0f} GiB on its card, beside activations", wrong=not roomy)


def _locks(screen: Screen, models: list[Needed]) -> None:
    held = machine.locked_gpus()
    if held or any(model.on_gpu for model in models):
        told = f"softtok jobs hold GPU {', '.join(held)}" if held else "no softtok job holds a GPU"
        screen.say("locks", told)


def _memory(screen: Screen, models: list[Needed]) -> None:
    total, available = machine.memory_bytes()
    largest = max(models, key=lambda model: model.host_bytes)
    asked = max(model.runtime.memory_mb for model in models) * 2**20
    text = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available; a job asks for {asked / GIB:.1f}"
    if largest.host_bytes:
        text += f", and {largest.model.name} keeps {largest.host_bytes / GIB:.1f} while it trains, beside activations"
    if (load := os.getloadavg()[0]) > LOADED * (os.cpu_count() or 1) and not any(model.on_gpu for model in models):
        screen.say("load", f"{load:.1f} programs compete for {os.cpu_count()} cores: jobs take longer than counted")
    screen.say("memory", text, wrong=max(asked, largest.host_bytes) > total)
    if unknown := [model.model.name for model in models if model.size is None]:
        screen.say("models", f"how large {', '.join(unknown)} is will be known when it has been made")


def _disk(screen: Screen, models: list[Needed], study: Study, results: Path) -> None:
    """Compares the room with what models and checkpoints take, and a training's state beside them."""
    counts = {model.model.folder: model for model in models}
    kept = sum(model.count * (2 if isinstance(model.model.spec.source, HubSource) else 4) for model in models)
    for run in study.runs.values():
        if run.train_set is not None:
            model = counts[run.model.folder]
            kept += model.count * (2 if model.on_gpu else 4)
    beside = STATE_BYTES * max(model.count for model in models)
    free = machine.free_bytes(results)
    text = f"{free / 1e9:.1f} GB free; models and checkpoints take {kept / 1e9:.1f}, a training {beside / 1e9:.1f} more"
    screen.say("disk", text, wrong=free < kept + beside)


def _hub(screen: Screen, models: list[Needed]) -> None:
    sources = [(model.model.name, model.model.spec.source) for model in models]
    fetched = [(name, source) for name, source in sources if isinstance(source, HubSource)]
    if not fetched:
        screen.say("hub", "no model comes from it")
        return
    screen.say("hub", "a token is there" if hub.token_at_hand() else "no token; gated models need `hf auth login`")
    for name, source in fetched:
        refused = hub.refusal(source.hub, source.revision)
        screen.say("", f"{name}: {refused or 'can be fetched'}", wrong=refused is not None)


def _probe(screen: Screen, models: list[Needed], results: Path) -> Iterator[str]:
    """Measures the device with the layers of the study's largest model that is known."""
    known = [model for model in models if model.size is not None]
    if not known:
        yield from screen.say("probes", "left out: no model's shape is known yet")
        return
    largest = max(known, key=lambda model: model.count)
    assert largest.size is not None
    gpu = largest.on_gpu and torch.cuda.is_available()
    if largest.on_gpu and not gpu:
        yield from screen.say("probes", "left out: the study asks for a GPU, and there is none")
        return
    print("softtok: measuring, half a minute ...", file=sys.stderr, flush=True)
    rates, found = measure(largest.size, torch.device("cuda", 0) if gpu else torch.device("cpu"), results)
    for line in found:
        yield from screen.say("probe", line)
    (results / DOCTOR).parent.mkdir(parents=True, exist_ok=True)
    write_text(results / DOCTOR, rates.as_json())
    yield from screen.say("kept", f"{results / DOCTOR}, from which `softtok estimate` counts")
