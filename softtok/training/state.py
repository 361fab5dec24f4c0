"""What a training has reached: the steps it took, and its best weights. Saved in `.state/`, and resumed from there.

Weights and moments are saved every few steps. The best weights are saved whenever a validation finds better ones, each
in a folder named after its step, `best-<step>`. So a job that is killed leaves the folder that `progress.pt` names.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from softtok.config.manifests import Divergence
from softtok.config.settings import RuntimeSettings
from softtok.models.language_model import LanguageModel
from softtok.training.checkpoint import read_progress, write_progress, write_weights
from softtok.training.optimizer import MasterAdamW
from softtok.training.saving import Writing, copy_if_it_fits

Metrics = dict[str, Any]
"""What metrics.jsonl says of one step, by name: numbers, None, and the device."""


class Best(NamedTuple):
    """The best step so far, its validation accuracy (percent) and the hashes of its files (`write_weights`)."""

    step: int | None = None
    validation: float = -math.inf
    files: Mapping[str, str] = MappingProxyType({})


class RunState:
    """What one run has reached, kept in `folder`; `key` says of which spec, model and data it is.

    The weights themselves are in `lm` and `optimizer`, which the training changes.
    """

    def __init__(self, folder: Path, key: str, lm: LanguageModel, optimizer: MasterAdamW, started: float) -> None:
        self.folder, self.key, self.lm, self.optimizer = folder, key, lm, optimizer
        self.step = 0
        self.best = Best()
        self.lines: list[Metrics] = []
        self.diverged: Divergence | None = None
        self.started, self.spent_s = started, 0.0  # this attempt's start, by `time.monotonic`; seconds of earlier ones
        self.last_save = started
        self.saved_best: Path | None = None  # folder of the best weights according to `progress.pt`
        self.writing = Writing()

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken so far; attempts that ended early count up to their last save."""
        return self.spent_s + time.monotonic() - self.started

    @property
    def best_folder(self) -> Path:
        """Folder of the best step's weights, or of step 0 for a run that diverged before its first validation."""
        return self.folder / f"best-{self.best.step or 0}"

    def keep_as_best(self, validation: float) -> None:
        """Keeps the current weights as the best."""
        self.best = Best(self.step, validation)
        self.save_weights()

    def save_weights(self) -> None:
        """Saves the current weights in the folder of the best."""
        self.best = self.best._replace(files=write_weights(self.best_folder, self.lm))
        self._delete_stale(self.best_folder, self.saved_best, self.writing.best)

    def save_is_due(self, runtime: RuntimeSettings) -> bool:
        """Whether it is time to save, by steps or by minutes."""
        every, minutes = runtime.save_every, (time.monotonic() - self.last_save) / 60
        by_time = minutes >= runtime.save_every_min and not self.writing.busy
        return by_time or (every is not None and self.step % every == 0)

    def save(self, done: bool = False) -> None:
        """Saves everything that `resume` needs in one file, without the optimizer's state if all steps are done.

        A thread writes it from a copy, if there is room for one, and training goes on (`settle`).
        """
        self.settle(wait=True)
        self.last_save = time.monotonic()
        progress_now = {
            "key": self.key,
            "step": self.step,
            "best": self.best._asdict() | {"files": dict(self.best.files)},
            "lines": [dict(line) for line in self.lines],
            "diverged": self.diverged and self.diverged.model_dump(),
            "wall_s": self.wall_s,
        }
        path, optimizer, needed = self.folder / "progress.pt", None, 0
        if not done:
            optimizer, needed = self.optimizer.state(), 12 * self.lm.model.num_parameters()
            if (copy := copy_if_it_fits(optimizer)) is not None:
                write = partial(write_progress, path, progress_now | {"optimizer": copy}, needed)
                self.writing.start(write, self.best_folder)
                return
        write_progress(path, progress_now | {"optimizer": optimizer}, needed)
        self._now_saved(self.best_folder)

    def settle(self, wait: bool = False) -> None:
        """Notes that a save has been written, and deletes what it replaced. Raises what writing it raised."""
        if (best := self.writing.settled(wait)) is not None:
            self._now_saved(best)

    def resume(self) -> None:
        """Continues from `progress.pt` if it belongs to this spec, model and data."""
        path = self.folder / "progress.pt"
        saved = read_progress(path)
        if saved is not None and saved["key"] != self.key:
            print(f"softtok: {path} belongs to another spec, model or data; starting from step 0")
            saved = None
        if saved is None:
            self._delete_stale()
            return
        self.step, self.best, self.lines = saved["step"], Best(**saved["best"]), saved["lines"]
        self.diverged = saved["diverged"] and Divergence(**saved["diverged"])
        self.spent_s = saved["wall_s"]
        if saved["optimizer"] is not None:
            self.optimizer.load_state(saved["optimizer"])
        if saved["optimizer"] is None or self.best.step is not None:
            self.saved_best = self.best_folder
        self._delete_stale(self.saved_best)
        print(f"softtok: resuming after step {self.step}")

    def _now_saved(self, best: Path) -> None:
        """Notes that `progress.pt` names these best weights, and deletes the others, but for better ones since then."""
        self.saved_best = best
        self._delete_stale(best, self.best_folder)

    def _delete_stale(self, *keep: Path | None) -> None:
        """Deletes best-* folders, except those to keep, and temporary files of killed jobs."""
        for path in self.folder.iterdir():
            if path.name.startswith("best-") and path not in keep:
                shutil.rmtree(path)
            elif path.suffix == ".tmp" and not self.writing.busy:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
