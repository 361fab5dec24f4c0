"""The manifests that jobs write beside their results, and that later jobs read: of a model, a checkpoint and a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import Field, JsonValue, ValidationError

from softtok.config.messages import explain
from softtok.config.specs import ModelSpec, RunSpec
from softtok.errors import UserError
from softtok.problems.prompting import Prompting, of_model
from softtok.storage.files import read_manifest, write_manifest
from softtok.storage.records import Record, is_none

M = TypeVar("M", bound=Record)


class HubReference(Record):
    """A model of the hub at a locked revision."""

    hub: str
    revision: str


class FolderReference(Record):
    """A model folder. `weights` has size and time of last change of each weight file of a user's own folder."""

    path: str
    weights: dict[str, list[int]] | None = None


class ModelManifest(Record):
    """The model.json of a base model; `reference` says where the weights are if they are not beside it.

    `sha256` identifies the weights. `files` has the SHA-256 of all files that decide how the model works, by name (None
    in an earlier version). `facts` are those of a toy's pretraining.
    """

    spec: ModelSpec
    reference: HubReference | FolderReference | None = None
    sha256: str
    files: dict[str, str] | None = None
    facts: dict[str, float | None] = Field(default_factory=dict)
    provenance: dict[str, str]


class CheckpointManifest(Record):
    """The checkpoint.json of a run; `reference` leads to the model if the run is that of an untouched one.

    The RMS values are units of noise. A trained checkpoint carries those of its base model.
    """

    reference: HubReference | FolderReference | None = None
    sha256: str
    files: dict[str, str] | None = None
    embedding_rms: float | None
    state_rms: dict[str, float]
    prompt: str
    prompting: Prompting | None = Field(default=None, exclude_if=is_none)
    seed: int

    @property
    def asks(self) -> Prompting:
        """How questions are asked, if a test set says nothing else: as the model's."""
        return of_model(self.prompt, self.prompting)


class Divergence(Record):
    """The step at which a run diverged, and the reason that it gave."""

    step: int
    reason: str


class RunManifest(Record):
    """The manifest.json of a finished run: its spec, its result, and its provenance.

    Runs of earlier versions have no hash of their metrics.jsonl.
    """

    spec: RunSpec
    steps: int
    best_step: int | None
    best_validation: float | None
    diverged: Divergence | None
    checkpoint_sha256: str
    metrics_sha256: str | None = None
    wall_s: float
    attempts: list[dict[str, JsonValue]]
    provenance: dict[str, str]


def read(kind: type[M], path: Path) -> M:
    """Reads a manifest. Raises UserError if the file is missing or damaged."""
    manifest = read_manifest(path)
    try:
        return kind.model_validate_json(json.dumps(manifest))
    except ValidationError as error:
        why = explain(error, kind, "")
        raise UserError(
            f"{path} cannot be read ({why}); remove the folder {path.parent} and run snakemake again"
        ) from error


def write(path: Path, manifest: Record) -> None:
    """Writes a manifest with its checksum, atomically."""
    write_manifest(path, manifest.model_dump(mode="json"))
