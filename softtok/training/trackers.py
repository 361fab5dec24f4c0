"""Logs a training to experiment trackers, through accelerate: what metrics.jsonl says of each step, live.

A step that is taken again after a kill is the same step, so each tracker gets it once: `.state/` keeps the last step
that was handed to it. A tracker that is added later gets all steps from the first one on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from softtok.config.settings import Tracker
from softtok.config.specs import RunSpec
from softtok.errors import UserError
from softtok.storage.files import write_text

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "softtok"
Value = float | str | None


class Trackers:
    """The trackers of one run; without any, nothing is imported and nothing is written."""

    def __init__(self, names: Iterable[Tracker], spec: RunSpec, run: Path, key: str) -> None:
        """Takes the trackers' names, the run's spec and folder, and what tells its training from any other (`key`)."""
        self.names, self.spec, self.run, self.key = list(dict.fromkeys(names)), spec, run, key[:16]
        self.open: dict[str, GeneralTracker] = {}
        self.logged: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Opens the trackers. Raises UserError if one of them cannot be opened."""
        self.logged = self._read()
        for name in self.names:
            try:
                self.open[name] = self._opened(name)
            except Exception as error:  # each of them has its own, for a missing account or a server that is away
                self.__exit__()
                raise UserError(
                    f"runtime: trackers: {name} does not start ({_line(error)}); mend that, or take it out of the list"
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        for name, tracker in self.open.items():
            try:
                tracker.finish()
            except Exception as error:
                print(f"softtok: warning: tracker {name} did not finish ({_line(error)})")
        self.open = {}

    def log(self, lines: Sequence[Mapping[str, Value]]) -> None:
        """Logs those of the run's lines that a tracker does not have yet."""
        for name in list(self.open):
            new: list[Mapping[str, Value]] = []
            for line in reversed(lines):
                if _step(line) <= self.logged.get(name, -1):
                    break
                new.insert(0, line)
            for line in new:
                self._log_line(name, line)

    def _log_line(self, name: str, line: Mapping[str, Value]) -> None:
        """Logs a line; a tracker that fails is left out until the training is started again."""
        if name not in self.open:
            return
        # Noted first: if the job is killed between the two, the tracker lacks a step, and does not have one twice.
        before, self.logged[name] = self.logged.get(name, -1), _step(line)
        self._write()
        values = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
        try:
            self.open[name].log(values, step=_step(line))
        except Exception as error:
            self.logged[name] = before
            self._write()
            del self.open[name]
            what = f"tracker {name} failed at step {_step(line)} ({_line(error)})"
            print(f"softtok: warning: {what}; going on without it")

    def _opened(self, name: str) -> GeneralTracker:
        """Returns a tracker that has begun its run, or goes on with it."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # accelerate's own messages need it; the training is one process and has its device
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        if name == "tensorboard":  # its run is a folder, below this one
            tracker = kind(self.key, self.run / "tensorboard")
        elif kind.requires_logging_directory:
            tracker = kind(self._label, str(self.run), **self._options(name))
        else:
            tracker = kind(PROJECT, **self._options(name))
        tracker.start()
        if name not in self.logged:
            tracker.store_init_configuration(self._settings())
            self.logged[name] = -1
            self._write()
        found: GeneralTracker = tracker
        return found

    @property
    def _label(self) -> str:
        """The run in words, as its folder has it: model, train set, mode and seed."""
        return "/".join(self.run.resolve().parts[-4:])

    def _options(self, name: str) -> dict[str, Any]:
        """Returns what names the run to a tracker, so that it goes on with it where it can."""
        options: dict[str, dict[str, Any]] = {
            "wandb": {"name": self._label, "id": self.key, "resume": "allow", "dir": str(self.run)},
            "trackio": {"name": f"{self._label}/{self.key}", "resume": "allow"},
            "mlflow": {"run_name": self._label},
            "clearml": {"task_name": self._label},
            "swanlab": {"experiment_name": self._label},
            "dvclive": {"dir": str(self.run / "dvclive"), "resume": True},
        }
        return options.get(name, {})

    def _settings(self) -> dict[str, Any]:
        """Returns the run's settings as a tracker takes them: a flat mapping without empty values."""
        assert self.spec.mode is not None and self.spec.training is not None
        settings = {"seed": self.spec.seed, "run": self._label}
        for part in (self.spec.mode, self.spec.training):
            settings |= {key: value for key, value in part.model_dump(mode="json").items() if value is not None}
        return {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}

    @property
    def _path(self) -> Path:
        return self.run / ".state" / f"trackers-{self.key}.json"

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(name): int(step) for name, step in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _write(self) -> None:
        write_text(self._path, json.dumps(self.logged))


def _step(line: Mapping[str, Value]) -> int:
    return int(line["step"] or 0)


def _line(error: Exception) -> str:
    """Returns an error of somebody else's code in one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
