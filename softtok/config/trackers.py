"""The experiment trackers that a training may log to, by accelerate's names, and whether they are installed here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Literal, get_args

from softtok.config.messages import at, config_error
from softtok.config.schema import Config
from softtok.config.settings import Tracker
from softtok.errors import UserError

NAMES: tuple[Tracker, ...] = get_args(Tracker)
OTHER_PACKAGES = {"tensorboard": ("tensorboardX",), "mlflow": ("mlflow-skinny",)}  # that accelerate takes as well
EXTRA: tuple[Literal["tensorboard"]] = ("tensorboard",)  # what the optional extra `trackers` installs


def missing(names: Iterable[Tracker]) -> str:
    """Returns which of these trackers is not installed, and how to install it; an empty text if all are."""
    for name in names:
        if not any(map(_installed, (name, *OTHER_PACKAGES.get(name, ())))):
            how = "make install-trackers" if name in EXTRA else f".venv/bin/pip install {name.replace('_', '-')}"
            return f"{name} is not installed here; install it ({how}), or take it out of the list"
    return ""


def refuse_missing(names: Iterable[Tracker]) -> None:
    """Raises UserError if one of these trackers is not installed."""
    if what := missing(names):
        raise UserError(f"runtime: trackers: {what}")


def check_trackers(config: Config, studies: Iterable[str]) -> None:
    """Raises UserError if a training of these studies would log to a tracker that is not installed."""
    for study in studies:
        for model in {name: None for block in config.studies[study].blocks() for name in block.models or []}:
            if what := missing(config.runtime_of(model).trackers):
                own = "trackers" in config.models[model].runtime.model_fields_set
                where = at("models", model, "runtime", "trackers") if own else at("runtime", "trackers")
                raise config_error(where, what)


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
