"""Finds and loads what a person names as a model: a run, a model of the configuration, a folder, a file, a hub id."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from softtok.config.grid import Grid
from softtok.config.jobs import Model
from softtok.config.manifests import CheckpointManifest, ModelManifest, read
from softtok.config.messages import nearest
from softtok.config.settings import DeviceSettings
from softtok.config.specs import GgufSource, HubSource, ModelSpec
from softtok.errors import UserError
from softtok.models.base_model import make_model
from softtok.models.gguf_model import convert
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.problems.prompt import PROMPT
from softtok.problems.prompting import Prompting
from softtok.storage.hub import fetch


@dataclass(frozen=True)
class Subject:
    """A model that can be asked: `checkpoint` says how, and the units of its noise as far as a run knows them."""

    lm: LanguageModel
    checkpoint: CheckpointManifest


@contextlib.contextmanager
def subject(named: str, grid: Grid, results: Path, device: DeviceSettings) -> Iterator[Subject]:
    """Loads what `named` means: a name of the configuration, else a place on this machine, else a model of the hub.

    What has to be converted or trained first is, for this time. Raises UserError if there is nothing of this name.
    """
    path = Path(named)
    if named in grid.config.models:
        with _configured(grid.model(named), results, device) as found:
            yield found
    elif checkpoint := next((f for f in (path / "checkpoint", path) if (f / "checkpoint.json").is_file()), None):
        yield Subject(load(checkpoint, device), read(CheckpointManifest, checkpoint / "checkpoint.json"))
    elif (path / "model.json").is_file():
        yield _made(path, device)
    elif path.is_dir():
        yield Subject(load(path, device), _untouched(PROMPT, None))
    elif path.is_file() and path.suffix == ".gguf":
        with TemporaryDirectory(prefix="softtok-") as folder:
            convert(GgufSource(file=str(path), package=None, sha256=None), Path(folder))
            yield Subject(load(Path(folder), device), _untouched(PROMPT, None))
    elif "/" in named and not path.is_absolute() and named.count("/") == 1:
        yield Subject(load(fetch(named, None), device), _untouched(PROMPT, None))
    else:
        raise UserError(
            f"{named} is no run, no model folder, no GGUF file, no hub id OWNER/NAME and no model of the configuration"
            f"{nearest(named, grid.config.models)}"
        )


@contextlib.contextmanager
def _configured(model: Model, results: Path, device: DeviceSettings) -> Iterator[Subject]:
    """Loads a model of the configuration: the one in `results`, or one that is made for this time."""
    made = results / Path(model.folder).relative_to("results")
    if (made / "model.json").is_file():
        yield _made(made, device)
    elif isinstance(model.spec.source, HubSource):
        source = model.spec.source
        yield Subject(
            load(fetch(source.hub, source.revision), device), _untouched(model.spec.prompt, model.spec.prompting)
        )
    elif model.text is not None:
        raise UserError(f"model {model.name} learns a train set first; make it with a study: {made} does not exist")
    else:
        with TemporaryDirectory(prefix="softtok-") as folder:
            make_model(model.spec, device, Path(folder) / "model", None)
            yield _made(Path(folder) / "model", device)


def _made(folder: Path, device: DeviceSettings) -> Subject:
    spec: ModelSpec = read(ModelManifest, folder / "model.json").spec
    return Subject(load(folder, device), _untouched(spec.prompt, spec.prompting))


def _untouched(prompt: str, prompting: Prompting | None) -> CheckpointManifest:
    """Returns what a run of the untouched model would say of it."""
    return CheckpointManifest(sha256="", embedding_rms=None, state_rms={}, prompt=prompt, prompting=prompting, seed=0)
