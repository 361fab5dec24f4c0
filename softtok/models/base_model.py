"""Makes base models: trains a toy, fetches a hub model and locks it, converts a file, or refers to a local folder."""

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
from softtok.config.specs import FolderSource, GgufSource, HubSource, ModelSpec, RunSpec, ToySource
from softtok.errors import UserError
from softtok.models.folder_checks import refuse_folder
from softtok.models.references import weight_stamps
from softtok.problems.answer_format import PAPER_FORMAT
from softtok.problems.prompt import render
from softtok.problems.prompting import asking
from softtok.storage.files import atomic, content_hash, read_columns, text_hash, write_text
from softtok.storage.hub import fetch, locked
from softtok.storage.integrity import file_hashes, weights_sha256
from softtok.storage.provenance import provenance


def make_model(spec: ModelSpec, device: DeviceSettings, out: Path, text: Path | None) -> None:
    """Makes the folder `out` with its manifest model.json, which is written last.

    A hub model or a local folder gets a reference, not a copy; a GGUF file is converted into the folder. `text` is a
    prepared train set whose text a toy learns.
    Raises UserError if the model cannot be had.
    """
    from softtok.models.devices import device_name

    if isinstance(spec.source, GgufSource):
        _from_gguf(spec, spec.source, device, out)
        return
    reference: HubReference | FolderReference | None = None
    facts: dict[str, float | None] = {}
    if isinstance(spec.source, ToySource):
        facts = _toy(spec.source, spec.prompt, out, text)
    else:
        reference = _referred(spec.source)
    made_on = device_name("cpu") if reference is None else None
    manifest = _manifest(spec, reference, _folder(reference, out), facts, made_on)
    if reference is not None:
        _probe(manifest, device, out)
    write(out / "model.json", manifest)


def _manifest(
    spec: ModelSpec,
    reference: HubReference | FolderReference | None,
    folder: Path,
    facts: dict[str, float | None],
    made_on: str | None,
) -> ModelManifest:
    """Returns the manifest of a model whose files are in `folder`."""
    files = file_hashes(folder)
    return ModelManifest(
        spec=spec,
        reference=reference,
        # The identity of a hub model is its locked revision.
        sha256=content_hash(reference.model_dump(), 64)
        if isinstance(reference, HubReference)
        else weights_sha256(files),
        files=files,
        facts=facts,
        provenance=provenance(made_on),
    )


def _from_gguf(spec: ModelSpec, source: GgufSource, device: DeviceSettings, out: Path) -> None:
    """Converts a GGUF file into the folder `out`, once the result has been loaded and has passed every check."""
    from softtok.models.gguf_model import convert

    with atomic(out) as temporary:
        convert(source, temporary)
        manifest = _manifest(spec, None, temporary, {}, None)
        made_here = FolderReference(path=str(temporary.resolve()), weights=weight_stamps(temporary))
        try:
            _probe(manifest.model_copy(update={"reference": made_here}), device, out)
        except UserError as error:
            raise UserError(str(error).replace(made_here.path, source.file or f"in {source.package}")) from error
        write(temporary / "model.json", manifest)


def _referred(source: HubSource | FolderSource) -> HubReference | FolderReference:
    """Returns where the files of a hub model, which is fetched and locked, or of a local folder are.

    Raises UserError for a folder that cannot be used, before its files are hashed, which takes long.
    """
    if isinstance(source, HubSource):
        return HubReference(hub=source.hub, revision=fetch(source.hub, source.revision).name)
    folder = Path(source.path).resolve()
    refuse_folder(str(folder), folder)
    return FolderReference(path=str(folder), weights=weight_stamps(folder))


def _folder(reference: HubReference | FolderReference | None, out: Path) -> Path:
    """Returns where the files of a model are that was made in the folder `out`."""
    if isinstance(reference, HubReference):
        return locked(reference.hub, reference.revision)
    return out if reference is None else Path(reference.path)


def _probe(manifest: ModelManifest, device: DeviceSettings, out: Path) -> None:
    """Loads the model that a manifest refers to, so that one that cannot be used is refused now, not hours later.

    It needs no GPU: models can be fetched on a machine that has only a network, and little memory. So of a hub model it
    loads all but the values of the weights; what they tell, the first job that loads them says in the same line.
    """
    from softtok.models.loading import load, outline, refuse_unfaithful_copy
    from softtok.models.prompts import ask
    from softtok.models.tokenizer_checks import QUESTION, refuse_other_reading

    if device.gpus or device.device.startswith("cuda"):
        device = DeviceSettings(device="cpu", precision="bf16" if device.precision == "auto" else device.precision)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as trial:
        write(Path(trial) / "model.json", manifest)
        from_hub = isinstance(manifest.reference, HubReference)
        lm = outline(Path(trial)) if from_hub else load(Path(trial), device)
        refuse_other_reading(lm.name, lm.tokenizer)
        # Examples of a train set are read by the jobs, and end like those of a list.
        alone = manifest.spec.asks.model_copy(update={"shots": None})
        ask(lm, asking(None, alone, PAPER_FORMAT), [QUESTION])
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
        prompting=spec.model.prompting,
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
