"""Makes base models: trains a toy, fetches a hub model and locks its revision, or refers to a local folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from softtok.config.settings import DeviceSettings
from softtok.config.specs import FolderSource, HubSource, ModelSpec, RunManifest, RunSpec, ToySource
from softtok.models.folder_checks import refuse_folder
from softtok.models.references import weight_stamps
from softtok.problems.prompt import render
from softtok.storage.files import WEIGHTS, atomic, content_hash, folder_sha256, read_manifest, write_json, write_text
from softtok.storage.hub import fetch
from softtok.storage.provenance import provenance


def make_model(spec: ModelSpec, device: DeviceSettings, out: Path, text: Path | None) -> None:
    """Makes the folder `out` with its manifest model.json, which is written last.

    A hub model or a local folder gets a reference, not a copy. `text` is a prepared train set whose text a toy learns.
    Raises UserError if the model cannot be had.
    """
    from softtok.models.devices import device_name

    if isinstance(spec.source, ToySource):
        manifest = _toy(spec.source, spec.prompt, out, text)
        made_on = device_name("cpu")
    else:
        if isinstance(spec.source, FolderSource):
            folder = Path(spec.source.path).resolve()
            refuse_folder(str(folder), folder)  # before its weights are hashed, which takes long
        manifest = _referred(spec.source)
        _probe(manifest, spec.prompt, device, out)
        made_on = None
    facts = {"spec": spec.model_dump(mode="json"), "provenance": provenance(made_on)}
    write_json(out / "model.json", manifest | facts)


def _referred(source: HubSource | FolderSource) -> dict[str, Any]:
    """Returns the manifest of a hub model, which is fetched and locked, or of a local folder."""
    if isinstance(source, HubSource):
        reference = {"hub": source.hub, "revision": fetch(source.hub, source.revision).name}
        return {"reference": reference, "sha256": content_hash(reference, 64)}
    folder = Path(source.path).resolve()
    referred = {"path": str(folder), "weights": weight_stamps(folder)}
    return {"reference": referred, "sha256": folder_sha256(folder, WEIGHTS)}


def _probe(manifest: dict[str, Any], prompt: str, device: DeviceSettings, out: Path) -> None:
    """Loads the model that a manifest refers to, so that one that cannot be used is refused now, not hours later.

    It needs no GPU: models can be fetched on a machine that has only a network.
    """
    from softtok.models.loading import load, refuse_unfaithful_copy
    from softtok.models.tokenizer_checks import QUESTION, encode, refuse_other_reading

    if device.gpus or device.device.startswith("cuda"):
        device = DeviceSettings(device="cpu", precision="bf16" if device.precision == "auto" else device.precision)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as trial:
        write_json(Path(trial) / "model.json", manifest)
        lm = load(Path(trial), device)
        refuse_other_reading(lm.name, lm.tokenizer)
        encode(lm, [render(prompt, QUESTION)])
        refuse_unfaithful_copy(lm, Path(trial) / "copy", [render(prompt, QUESTION), QUESTION])


def _toy(source: ToySource, prompt: str, out: Path, text: Path | None) -> dict[str, Any]:
    import pandas as pd

    from softtok.models.toy_model import make

    pairs = None
    if text is not None:
        table = pd.read_parquet(text, columns=["question", "gold"])
        pairs = [(question, gold[0]) for question, gold in table.itertuples(index=False)]
    with atomic(out) as temporary:
        facts = make(source.toy, temporary, pairs, prompt)
    return {"sha256": folder_sha256(out, WEIGHTS), "facts": facts}


def base_run(spec: RunSpec, model: Path, out: Path) -> None:
    """Writes the run of the untouched model, whose checkpoint refers to `model`.

    So nothing downstream needs a special case.
    """
    manifest = read_manifest(model / "model.json")
    reference = manifest.get("reference") or {"path": str(model)}
    facts = {"sha256": manifest["sha256"], "reference": reference, "embedding_rms": None, "state_rms": {}}
    write_json(out / "checkpoint" / "checkpoint.json", facts | {"prompt": spec.model.prompt, "seed": spec.seed})
    write_text(out / "metrics.jsonl", "")
    run = RunManifest(
        spec=spec,
        steps=0,
        best_step=None,
        best_validation=None,
        diverged=None,
        checkpoint_sha256=manifest["sha256"],
        wall_s=0.0,
        attempts=[],
        provenance=provenance(),
    )
    write_json(out / "manifest.json", run.model_dump(mode="json"))
