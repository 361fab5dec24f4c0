"""Makes base models: trains a toy, fetches a hub model and locks its revision, or refers to a local folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from softtok.config.manifests import (
    CheckpointManifest,
    FolderReference,
    HubReference,
    ModelManifest,
    RunManifest,
    read,
    write,
)
from softtok.config.settings import DeviceSettings
from softtok.config.specs import FolderSource, HubSource, ModelSpec, RunSpec, ToySource
from softtok.models.folder_checks import refuse_folder
from softtok.models.references import weight_stamps
from softtok.problems.prompt import render
from softtok.storage.files import WEIGHTS, atomic, content_hash, folder_sha256, read_columns, text_hash, write_text
from softtok.storage.hub import fetch, locked
from softtok.storage.integrity import file_hashes
from softtok.storage.provenance import provenance


def make_model(spec: ModelSpec, device: DeviceSettings, out: Path, text: Path | None) -> None:
    """Makes the folder `out` with its manifest model.json, which is written last.

    A hub model or a local folder gets a reference, not a copy. `text` is a prepared train set whose text a toy learns.
    Raises UserError if the model cannot be had.
    """
    from softtok.models.devices import device_name

    reference: HubReference | FolderReference | None = None
    facts: dict[str, float | None] = {}
    if isinstance(spec.source, ToySource):
        facts = _toy(spec.source, spec.prompt, out, text)
        sha256 = folder_sha256(out, WEIGHTS)
    else:
        if isinstance(spec.source, FolderSource):
            folder = Path(spec.source.path).resolve()
            refuse_folder(str(folder), folder)  # before its weights are hashed, which takes long
        reference, sha256 = _referred(spec.source)
    made_on = device_name("cpu") if reference is None else None
    manifest = ModelManifest(
        spec=spec,
        reference=reference,
        sha256=sha256,
        files=file_hashes(_folder(reference, out)),
        facts=facts,
        provenance=provenance(made_on),
    )
    if reference is not None:
        _probe(manifest, device, out)
    write(out / "model.json", manifest)


def _referred(source: HubSource | FolderSource) -> tuple[HubReference | FolderReference, str]:
    """Returns where the weights of a hub model, which is fetched and locked, or of a local folder are, and their hash.

    That of a hub model is the hash of its reference.
    """
    if isinstance(source, HubSource):
        locked = HubReference(hub=source.hub, revision=fetch(source.hub, source.revision).name)
        return locked, content_hash(locked.model_dump(), 64)
    folder = Path(source.path).resolve()
    return FolderReference(path=str(folder), weights=weight_stamps(folder)), folder_sha256(folder, WEIGHTS)


def _folder(reference: HubReference | FolderReference | None, out: Path) -> Path:
    """Returns where the files of a model are that was made in the folder `out`."""
    if isinstance(reference, HubReference):
        return locked(reference.hub, reference.revision)
    return out if reference is None else Path(reference.path)


def _probe(manifest: ModelManifest, device: DeviceSettings, out: Path) -> None:
    """Loads the model that a manifest refers to, so that one that cannot be used is refused now, not hours later.

    It needs no GPU: models can be fetched on a machine that has only a network.
    """
    from softtok.models.loading import load, refuse_unfaithful_copy
    from softtok.models.tokenizer_checks import QUESTION, encode, refuse_other_reading

    if device.gpus or device.device.startswith("cuda"):
        device = DeviceSettings(device="cpu", precision="bf16" if device.precision == "auto" else device.precision)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as trial:
        write(Path(trial) / "model.json", manifest)
        lm = load(Path(trial), device)
        refuse_other_reading(lm.name, lm.tokenizer)
        encode(lm, [render(manifest.spec.prompt, QUESTION)])
        refuse_unfaithful_copy(lm, Path(trial) / "copy", [render(manifest.spec.prompt, QUESTION), QUESTION])


def _toy(source: ToySource, prompt: str, out: Path, text: Path | None) -> dict[str, float | None]:
    """Makes a toy in the folder `out` and returns the facts of its pretraining."""
    from softtok.models.toy_model import make

    pairs = None
    if text is not None:
        table = read_columns(text, ["question", "gold"]).to_pydict()
        pairs = [(question, gold[0]) for question, gold in zip(table["question"], table["gold"], strict=True)]
    with atomic(out) as temporary:
        return make(source.toy, temporary, pairs, prompt)


def base_run(spec: RunSpec, model: Path, out: Path) -> None:
    """Writes the run of the untouched model, whose checkpoint refers to `model`.

    So nothing downstream needs a special case.
    """
    manifest = read(ModelManifest, model / "model.json")
    checkpoint = CheckpointManifest(
        reference=manifest.reference or FolderReference(path=str(model)),
        sha256=manifest.sha256,
        files=manifest.files,
        embedding_rms=None,
        state_rms={},
        prompt=spec.model.prompt,
        seed=spec.seed,
    )
    write(out / "checkpoint" / "checkpoint.json", checkpoint)
    write_text(out / "metrics.jsonl", "")
    run = RunManifest(
        spec=spec,
        steps=0,
        best_step=None,
        best_validation=None,
        diverged=None,
        checkpoint_sha256=manifest.sha256,
        metrics_sha256=text_hash("", 64),
        wall_s=0.0,
        attempts=[],
        provenance=provenance(),
    )
    write(out / "manifest.json", run)
