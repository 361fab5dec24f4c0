"""Makes base models: trains a toy, fetches a hub model and locks its revision, or refers to a local folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from softtok.config.settings import RuntimeSettings, ToySettings
from softtok.errors import UserError
from softtok.models.references import weight_stamps
from softtok.storage.files import WEIGHTS, atomic, content_hash, folder_sha256, read_manifest, write_json, write_text
from softtok.storage.hub import fetch
from softtok.storage.provenance import provenance


def make_model(spec: dict[str, Any], runtime: RuntimeSettings, out: Path, text: Path | None) -> None:
    """Makes the folder `out` with its manifest model.json, which is written last.

    A hub model or a local folder gets a reference, not a copy. `text` is a prepared train set whose text a toy learns.
    Raises UserError if the model cannot be had.
    """
    from softtok.models.devices import device_name

    manifest: dict[str, Any]
    if "toy" in spec:
        manifest = _toy(spec, out, text)
    else:
        manifest = _referred(spec)
        _probe(manifest, runtime, out)
    made_on = device_name("cpu") if "toy" in spec else None
    write_json(out / "model.json", manifest | {"spec": spec, "provenance": provenance(made_on)})


def _referred(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest of a hub model, which is fetched and locked, or of a local folder."""
    if "hub" in spec:
        reference = {"hub": spec["hub"], "revision": fetch(spec["hub"], spec.get("revision")).name}
        return {"reference": reference, "sha256": content_hash(reference, 64)}
    folder = Path(spec["path"]).resolve()
    if not any(folder.glob(WEIGHTS)):
        raise UserError(
            f"model folder {folder}: holds no {WEIGHTS} file; give a Hugging Face folder with safetensors weights"
        )
    reference = {"path": str(folder), "weights": weight_stamps(folder)}
    return {"reference": reference, "sha256": folder_sha256(folder, WEIGHTS)}


def _probe(manifest: dict[str, Any], runtime: RuntimeSettings, out: Path) -> None:
    """Loads the model that a manifest refers to, so that an unsupported family is refused now, not hours later.

    It needs no GPU: models can be fetched on a machine that has only a network.
    """
    from softtok.models.loading import load

    if runtime.gpus or runtime.device.startswith("cuda"):
        half = "bf16" if runtime.precision == "auto" else runtime.precision
        runtime = runtime.model_copy(update={"device": "cpu", "precision": half, "cuda_graphs": False})

    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as trial:
        write_json(Path(trial) / "model.json", manifest)
        load(Path(trial), runtime)


def _toy(spec: dict[str, Any], out: Path, text: Path | None) -> dict[str, Any]:
    import pandas as pd

    from softtok.models.toy_model import make

    settings = ToySettings(**{name: value for name, value in spec["toy"].items() if name != "text"})
    pairs = None
    if text is not None:
        table = pd.read_parquet(text, columns=["question", "gold"])
        pairs = [(question, gold[0]) for question, gold in table.itertuples(index=False)]
    with atomic(out) as temporary:
        facts = make(settings, temporary, pairs, spec["prompt"])
    return {"sha256": folder_sha256(out, WEIGHTS), "facts": facts}


def base_run(spec: dict[str, Any], model: Path, out: Path) -> None:
    """Writes the run of the untouched model, whose checkpoint refers to `model`.

    So nothing downstream needs a special case.
    """
    manifest = read_manifest(model / "model.json")
    reference = manifest.get("reference") or {"path": str(model)}
    facts = {"sha256": manifest["sha256"], "reference": reference, "embedding_rms": None}
    write_json(
        out / "checkpoint" / "checkpoint.json", facts | {"prompt": spec["model"]["prompt"], "seed": spec["seed"]}
    )
    write_text(out / "train.jsonl", "")
    nothing: dict[str, Any] = {
        "steps": 0,
        "best_step": None,
        "best_validation": None,
        "diverged": None,
        "wall_s": 0.0,
        "attempts": [],
    }
    write_json(
        out / "train.json",
        nothing | {"spec": spec, "checkpoint_sha256": manifest["sha256"], "provenance": provenance()},
    )
