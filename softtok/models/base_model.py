"""Makes base models: trains a toy, fetches a hub model and locks its revision, or refers to a local folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from softtok.config.settings import DeviceSettings
from softtok.config.specs import FolderSource, HubSource, ModelSpec, RunManifest, RunSpec, ToySource
from softtok.errors import UserError
from softtok.storage.files import (
    WEIGHTS,
    atomic,
    content_hash,
    read_columns,
    read_manifest,
    text_hash,
    write_manifest,
    write_text,
)
from softtok.storage.hub import fetch
from softtok.storage.integrity import file_hashes, weights_sha256
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
        manifest = _referred(spec.source)
        _probe(manifest, device, out)
        made_on = None
    facts = {"spec": spec.model_dump(mode="json"), "provenance": provenance(made_on)}
    write_manifest(out / "model.json", manifest | facts)


def _referred(source: HubSource | FolderSource) -> dict[str, Any]:
    """Returns the manifest of a hub model, which is fetched and locked, or of a local folder."""
    if isinstance(source, HubSource):
        fetched = fetch(source.hub, source.revision)
        reference = {"hub": source.hub, "revision": fetched.name}
        return {"reference": reference, "sha256": content_hash(reference, 64), "files": file_hashes(fetched)}
    folder = Path(source.path).resolve()
    if not any(folder.glob(WEIGHTS)):
        raise UserError(
            f"model folder {folder}: holds no {WEIGHTS} file; give a Hugging Face folder with safetensors weights"
        )
    hashes = file_hashes(folder)
    return {"reference": {"path": str(folder)}, "sha256": weights_sha256(hashes), "files": hashes}


def _probe(manifest: dict[str, Any], device: DeviceSettings, out: Path) -> None:
    """Loads the model that a manifest refers to, so that an unsupported family is refused now, not hours later.

    It needs no GPU: models can be fetched on a machine that has only a network.
    """
    from softtok.models.loading import load

    if device.gpus or device.device.startswith("cuda"):
        device = DeviceSettings(device="cpu", precision="bf16" if device.precision == "auto" else device.precision)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as trial:
        write_manifest(Path(trial) / "model.json", manifest)
        load(Path(trial), device)


def _toy(source: ToySource, prompt: str, out: Path, text: Path | None) -> dict[str, Any]:
    from softtok.models.toy_model import make

    pairs = None
    if text is not None:
        table = read_columns(text, ["question", "gold"]).to_pydict()
        pairs = [(question, gold[0]) for question, gold in zip(table["question"], table["gold"], strict=True)]
    with atomic(out) as temporary:
        facts = make(source.toy, temporary, pairs, prompt)
        hashes = file_hashes(temporary)
    return {"sha256": weights_sha256(hashes), "files": hashes, "facts": facts}


def base_run(spec: RunSpec, model: Path, out: Path) -> None:
    """Writes the run of the untouched model, whose checkpoint refers to `model`.

    So nothing downstream needs a special case.
    """
    manifest = read_manifest(model / "model.json")
    reference = manifest.get("reference") or {"path": str(model)}
    facts = {"sha256": manifest["sha256"], "reference": reference, "embedding_rms": None, "state_rms": {}}
    if "reference" in manifest:
        facts["files"] = manifest.get("files")
    write_manifest(out / "checkpoint" / "checkpoint.json", facts | {"prompt": spec.model.prompt, "seed": spec.seed})
    write_text(out / "metrics.jsonl", "")
    run = RunManifest(
        spec=spec,
        steps=0,
        best_step=None,
        best_validation=None,
        diverged=None,
        checkpoint_sha256=manifest["sha256"],
        metrics_sha256=text_hash("", 64),
        wall_s=0.0,
        attempts=[],
        provenance=provenance(),
    )
    write_manifest(out / "manifest.json", run.model_dump(mode="json"))
