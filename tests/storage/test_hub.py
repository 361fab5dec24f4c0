"""What comes from the Hugging Face hub, tested without the hub.

Every shipped data set and a model are read from local copies of the hub's layout, with the settings of config.yaml.
Whatever the hub refuses is told in one line and leaves nothing behind.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from softtok.config.grid import Grid
from softtok.config.jobs import Data
from softtok.config.load import read
from softtok.config.settings import RuntimeSettings
from softtok.errors import UserError
from softtok.models.base_model import base_run, make_model
from softtok.models.loading import load
from softtok.problems.hub_sets import read_hub
from softtok.problems.prepare import prepare
from softtok.problems.spec import HubRows
from softtok.storage.files import read_json
from tests.support.project import ROOT
from tests.support.specs import base_spec, data_spec, hub_model

CPU = RuntimeSettings(device="cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Row = dict[str, Any]

TEXT = datasets.Value("string")
TEXTS = datasets.List(TEXT)
GSM8K = {"question": "How many?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}
MATH = {"problem": "Find $x$.", "level": "Level 5", "type": "Algebra", "solution": "So $x = \\boxed{\\frac{1}{2}}$."}
IMAGES = {f"image_{n}": None for n in range(1, 6)}
OLYMPIAD = {
    "id": 1606, "question": "How many moves?", "solution": ["Two."], "final_answer": ["$2$", "3"], "context": None,
    **IMAGES, "modality": "Text-only", "difficulty": "Competition", "is_multiple_answer": True, "unit": None,
    "answer_type": "Numerical", "error": None, "question_type": "Open-ended", "subfield": "Combinatorics",
    "subject": "Math", "language": "English",
}  # fmt: skip
OLYMPIAD_TYPES = {
    **{name: TEXT for name in OLYMPIAD}, "id": datasets.Value("int32"), "solution": TEXTS, "final_answer": TEXTS,
    **{name: datasets.Image() for name in IMAGES}, "is_multiple_answer": datasets.Value("bool"),
}  # fmt: skip
HELLASWAG = {
    "ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is on a roof.", "ctx_b": "he",
    "ctx": "A man is on a roof. he", "endings": ["falls.", "sings.", "sits.", "works."],
    "source_id": "activitynet~v_1", "split": "val", "split_type": "indomain", "label": "3",
}  # fmt: skip
ARC = {"id": "Mercury_1", "question": "Which is it?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}}
SVAMP = {
    "ID": "", "Body": "", "Question": "How many?", "Equation": "( 76.0 - 25.0 )", "Answer": "51.0",
    "Type": "Subtraction", "question_concat": "",
}  # fmt: skip
MMLU = {"question": "Which is it?", "subject": "astronomy", "choices": ["a", "b", "c", "d"], "answer": 1}
MMLU_TYPES = {"question": TEXT, "subject": TEXT, "choices": TEXTS, "answer": datasets.ClassLabel(names=list("ABCD"))}


def parquet(path: Path, rows: list[Row], types: Row | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=datasets.Features(types) if types else None).to_parquet(path)


def card(folder: Path, **configs: dict[str, str]) -> None:
    """The hub's README.md, whose header names the files of each split of each configuration."""
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def gsm8k(folder: Path) -> None:
    for name in ("main", "socratic"):
        for split in ("train", "test"):
            row = GSM8K | {"question": f"How many, {split}?"} if name == "main" else {"question": "x", "answer": "y"}
            parquet(folder / name / f"{split}-00000-of-00001.parquet", [row])
    card(folder, **{name: {s: f"{name}/{s}-*" for s in ("train", "test")} for name in ("main", "socratic")})


def math(folder: Path) -> None:
    for split in ("train", "test"):
        for place in ("data", "algebra"):
            rows = [MATH | {"problem": f"Find $x$, {split}."}] * (1 if place == "data" else 3)
            parquet(folder / place / f"{split}-00000-of-00001.parquet", rows)
    places = {"default": "data", "algebra": "algebra"}
    card(folder, **{name: {s: f"{place}/{s}-*" for s in ("train", "test")} for name, place in places.items()})


def deepscaler(folder: Path) -> None:
    rows = [{"problem": "Find $x$.", "answer": "-\\frac{2}{3}", "solution": "Solve."}, MATH | {"answer": "26"}]
    (folder / "deepscaler.json").write_text(json.dumps([rows[0], {key: rows[1][key] for key in rows[0]}]))


def math500(folder: Path) -> None:
    row = {**MATH, "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}
    (folder / "test.jsonl").write_text(json.dumps({key: row[key] for key in row if key != "type"}) + "\n")


def olympiadbench(folder: Path) -> None:
    names = ("OE_TO_maths_en_COMP", "OE_TO_physics_en_COMP")
    for name in names:
        row = OLYMPIAD if "maths" in name else OLYMPIAD | {"question": "How fast?"}
        parquet(folder / "OlympiadBench" / name / f"{name}.parquet", [row], OLYMPIAD_TYPES)
    card(folder, **{name: {"train": f"OlympiadBench/{name}/{name}.parquet"} for name in names})


def hellaswag(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        row = HELLASWAG if split == "validation" else HELLASWAG | {"label": ""}
        parquet(folder / "data" / f"{split}-00000-of-00001.parquet", [row])
    card(folder, default={s: f"data/{s}-*" for s in ("train", "validation", "test")})


def arc(folder: Path) -> None:
    for name in ("ARC-Challenge", "ARC-Easy"):
        rows = [ARC | {"answerKey": "2"}, ARC | {"id": "MCAS_1", "answerKey": "B"}]
        rows[1]["choices"] = {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}
        parquet(folder / name / "test-00000-of-00001.parquet", rows if name == "ARC-Challenge" else rows[:1])
    card(folder, **{name: {"test": f"{name}/test-*"} for name in ("ARC-Challenge", "ARC-Easy")})


def mmlu(folder: Path) -> None:
    for split, count in (("test", 2), ("dev", 1)):
        parquet(folder / "all" / f"{split}-00000-of-00001.parquet", [MMLU] * count, MMLU_TYPES)
    card(folder, all={s: f"all/{s}-*" for s in ("test", "dev")})


def svamp(folder: Path) -> None:
    """Its splits are not those of config.yaml."""
    for split, (first, last) in {"train": (1, 1000), "test": (700, 701)}.items():
        rows = [SVAMP | {"ID": f"chal-{n}", "Body": f"{split} {n}"} for n in (last, first)]
        parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
    card(folder, default={s: f"data/{s}-*" for s in ("train", "test")})


PUBLISHED: dict[str, Callable[[Path], None]] = {
    "openai/gsm8k": gsm8k,
    "ChilleD/SVAMP": svamp,
    "DigitalLearningGmbH/MATH-lighteval": math,
    "agentica-org/DeepScaleR-Preview-Dataset": deepscaler,
    "HuggingFaceH4/MATH-500": math500,
    "Hothan/OlympiadBench": olympiadbench,
    "Rowan/hellaswag": hellaswag,
    "allenai/ai2_arc": arc,
    "cais/mmlu": mmlu,
}
HALF = ["\\frac{1}{2}"]
EXPECTED: dict[tuple[str, str], list[Row]] = {
    ("train", "gsm8k"): [{"id": "row0", "question": "How many, train?", "gold": ["2"]}],
    ("test", "gsm8k"): [{"id": "row0", "question": "How many, test?", "gold": ["2"]}],
    ("train", "svamp"): [
        {"id": "chal-1", "question": "train 1 How many?", "gold": ["51"], "story": "train 1"},
        {"id": "chal-700", "question": "test 700 How many?", "gold": ["51"], "story": "test 700"},
    ],
    ("test", "svamp"): [
        {"id": "chal-701", "question": "test 701 How many?", "gold": ["51"], "story": "test 701"},
        {"id": "chal-1000", "question": "train 1000 How many?", "gold": ["51"], "story": "train 1000"},
    ],
    ("train", "math"): [
        {"id": "row0", "question": "Find $x$, train.", "gold": HALF},
        {"id": "row1", "question": "Find $x$, test.", "gold": HALF},
    ],
    ("train", "math-7500"): [{"id": "row0", "question": "Find $x$, train.", "gold": HALF}],
    ("train", "deepscaler"): [
        {"id": "row0", "question": "Find $x$.", "gold": ["-\\frac{2}{3}"]},
        {"id": "row1", "question": "Find $x$.", "gold": ["26"]},
    ],
    ("test", "math500"): [{"id": "test/algebra/1.json", "question": "Find $x$.", "gold": HALF}],
    ("test", "olympiadbench"): [{"id": "1606", "question": "How many moves?", "gold": ["2", "3"]}],
    ("choice", "hellaswag"): [
        {"id": "row0", "question": "A man is on a roof. he", "choices": HELLASWAG["endings"], "answer": 3}
    ],
    ("choice", "arc"): [
        {"id": "Mercury_1", "question": "Which is it?", "choices": ["a", "b"], "answer": 1},
        {"id": "MCAS_1", "question": "Which is it?", "choices": ["a", "b", "c"], "answer": 1},
    ],
    ("choice", "mmlu"): [
        {"id": f"row{n}", "question": "Which is it?", "choices": ["a", "b", "c", "d"], "answer": 1} for n in (0, 1)
    ],
}


@pytest.fixture(scope="module")
def shipped() -> dict[tuple[str, str], Data]:
    """Every data set of config.yaml as a job, also those that no study names."""
    config = read(ROOT / "config.yaml")
    grid = Grid(config)
    for kind in ("train", "test", "choice"):
        for name in getattr(config, f"{kind}_sets"):
            grid._data(kind, name)
    return {(data.kind, data.name): data for data in grid.data.values()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Stands in for the hub: names lead to local copies, `main` to COMMIT. Returns what is asked of it."""
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str | None]] = []
    read_folder, find_files = datasets.load_dataset, datasets.load_dataset_builder

    def info(self: Any, path: str, revision: str | None) -> Any:
        assert revision is None
        return type("Info", (), {"sha": COMMIT})

    def find(path: str, name: str | None = None, *, revision: str | None = None) -> Any:
        asked.append((path, revision))
        (folder := tmp_path / "hub" / path).mkdir(parents=True)
        PUBLISHED[path](folder)
        return find_files(str(folder), name, cache_dir=str(tmp_path / "cache"))

    def fetch(path: str, name: str | None = None, *, revision: str | None = None, **options: Any) -> Any:
        assert asked == [(path, revision)]
        return read_folder(str(tmp_path / "hub" / path), name, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset_builder", find)
    monkeypatch.setattr(datasets, "load_dataset", fetch)
    return asked


@pytest.mark.parametrize(("kind", "name"), EXPECTED)
def test_a_shipped_set_is_read_from_the_hubs_layout_and_locked(
    kind: str, name: str, shipped: dict[tuple[str, str], Data], hub: list[tuple[str, str | None]]
) -> None:
    data = shipped[kind, name]
    # The sets that it must not overlap are prepared by jobs of their own.
    prepare(data.spec, Path("set.parquet"), {}, None)
    manifest = read_json(Path("set.json"))
    assert pq.read_table("set.parquet").to_pylist() == EXPECTED[kind, name]
    assert isinstance(data.spec.source, HubRows)
    assert hub == [(data.spec.source.path, COMMIT)]
    assert manifest["revision"] == COMMIT
    assert len(manifest["source_sha256"]) == 64


def test_every_shipped_hub_set_is_among_them(shipped: dict[tuple[str, str], Data]) -> None:
    whole = {key for key, data in shipped.items() if data.spec.source.kind == "hub" and data.spec.limit is None}
    assert whole == EXPECTED.keys(), "sets with a limit are the first problems of these"


def test_columns_that_nothing_maps_may_hold_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "set/train-00000-of-00001.parquet", [{"q": "x", "a": "1", "written": date(2025, 1, 1)}])
    source = {"hub": {"path": str(tmp_path / "set"), "split": "train"}}
    prepare(data_spec("test", source, question="q", gold={"field": "a"}), Path("set.parquet"), {}, None)
    assert read_json(Path("set.json"))["rows"] == 1


# What the hub refuses


def answer(kind: type[Exception], status: int) -> Exception:
    """An error as huggingface_hub makes it: an HTTP status first, the reason lines later."""
    response = type("Response", (), {"status_code": status, "headers": {}, "request": None, "url": "https://hub/x"})()
    return kind(f"{status} Client Error. (Request ID: abc)\n\nthe reason stands here", response=response)  # type: ignore[call-arg]


def wrapped(inner: Exception, outer: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


class TransportError(Exception):
    """As HTTP clients name it."""


class ConnectError(TransportError):
    pass


# Who it concerns can do something, or is told after one try: asking again would not help.
REFUSALS = {
    "gated": (answer(GatedRepoError, 403), "access is restricted; ask for it at https://huggingface.co/{page}, "),
    "missing": (answer(RepositoryNotFoundError, 401), "the hub has nothing of this name, or it is private; "),
    "wrong revision": (answer(RevisionNotFoundError, 404), "it has no revision 'v9'"),
    "not in the cache": (LocalEntryNotFoundError("no snapshot\nmore"), "the hub cannot be reached and the local "),
    "offline": (OfflineModeIsEnabled("no"), "the hub cannot be reached and the local "),
    "gated, wrapped": (
        wrapped(answer(GatedRepoError, 403), datasets.exceptions.DatasetNotFoundError("no access")),
        "access is restricted; ",
    ),
    "disk full": (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device; "),
}


# What may be gone a moment later.
HICCUPS = {
    "no connection": (ConnectError("[Errno -2] Name or service not known"), "the hub cannot be reached and the local "),
    "lost while asking": (
        wrapped(ConnectError("reset"), LocalEntryNotFoundError("no snapshot\nmore")),
        "the hub cannot be reached and the local ",
    ),
    "too many requests": (answer(HfHubHTTPError, 429), "the hub is busy (HfHubHTTPError: 429 Client Error. "),
    "unavailable": (answer(HfHubHTTPError, 503), "the hub is busy ("),
    "unavailable, wrapped": (
        wrapped(answer(HfHubHTTPError, 502), datasets.exceptions.DatasetNotFoundError("no answer")),
        "the hub is busy (",
    ),
    "timeout": (TimeoutError("timed out"), "TimeoutError: timed out; "),
}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited between tries, in no time."""
    waited: list[float] = []
    monkeypatch.setattr("softtok.storage.hub.time.sleep", waited.append)
    return waited


@pytest.mark.parametrize("name", HICCUPS)
def test_a_busy_hub_is_asked_three_times(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    error, words = HICCUPS[name]
    tries = []

    def refuse(*args: Any, **options: Any) -> None:
        tries.append(args)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError) as caught:
        make_model(hub_model("org/model"), CPU, tmp_path / "out/model", None)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert len(tries) == 3 and waits == [3.0, 12.0]
    printed = capsys.readouterr().err.splitlines()
    assert [line.split(";")[-1] for line in printed] == [" trying again in 3 s", " trying again in 12 s"]


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_succeed_is_asked_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    tries = []

    def refuse(*args: Any, **options: Any) -> None:
        tries.append(args)
        raise REFUSALS[name][0]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError):
        make_model(hub_model("org/model", "v9"), CPU, tmp_path / "out/model", None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(UserError):
        read_hub(HubRows(path="org/set", name=None, split="test", revision="v9"))
    assert len(tries) == 2 and not waits


def test_a_hub_that_recovers_is_used(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """After the wait that it asks for."""
    busy, known = answer(HfHubHTTPError, 429), huggingface_hub.snapshot_download
    busy.response.headers = {"retry-after": "55"}  # type: ignore[attr-defined]
    errors = [busy, TimeoutError()]

    def download(*args: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return known(*args, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    make_model(hub_model("org/tiny"), CPU, tmp_path / "models/tiny", None)
    assert waits == [55.0, 12.0]
    assert read_json(tmp_path / "models/tiny/model.json")["reference"]["revision"] == COMMIT


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_model_is_one_line_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, words = REFUSALS[name]

    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError) as caught:
        make_model(hub_model("org/model", "v9"), CPU, tmp_path / "out/model", None)
    assert str(caught.value).startswith("model org/model (revision v9) cannot be fetched: ")
    assert words.format(page="org/model") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("step", ["dataset_info", "load_dataset_builder", "load_dataset"])
def test_a_refused_data_set_is_one_line_and_leaves_nothing(
    name: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, words = REFUSALS[name]

    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: type("Info", (), {"sha": COMMIT}))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: None)  # of a kind that `load_dataset` reads
    monkeypatch.setattr(huggingface_hub.HfApi if step == "dataset_info" else datasets, step, refuse)
    spec = data_spec(
        "test",
        {"hub": {"path": "org/set", "split": "test", "revision": "v9"}},
        question="q",
        gold={"field": "a"},
    )
    with pytest.raises(UserError) as caught:
        prepare(spec, tmp_path / "out/set.parquet", {}, None)
    assert str(caught.value).startswith("data set org/set (revision v9) cannot be fetched: ")
    assert words.format(page="datasets/org/set") in str(caught.value)
    assert str(caught.value).endswith(", or give local files with data_root")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*"))


# Models


@pytest.fixture
def repository(tiny_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """org/tiny in a cache of the hub's shape: `main` is COMMIT, its weights lie in several files."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache/models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    AutoTokenizer.from_pretrained(tiny_toy).save_pretrained(snapshot)
    AutoModelForCausalLM.from_pretrained(tiny_toy).save_pretrained(snapshot, max_shard_size="40KB")
    assert len(list(snapshot.glob("*.safetensors"))) > 1
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return repository


def test_a_hub_model_stays_at_its_locked_commit_when_main_moves_on(repository: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "models/tiny", tmp_path / "runs/base"
    spec = hub_model("org/tiny")
    make_model(spec, CPU, folder, None)
    base_run(base_spec(spec), folder, run)
    manifest = read_json(folder / "model.json")
    assert manifest["reference"] == {"hub": "org/tiny", "revision": COMMIT}
    assert {path.name for path in tmp_path.rglob("*.json") if "cache" not in path.parts} == {
        "model.json", "checkpoint.json", "manifest.json",
    }, "a reference, no copy"  # fmt: skip

    moved = shutil.copytree(repository / "snapshots" / COMMIT, repository / "snapshots" / COMMIT[::-1])
    model = AutoModelForCausalLM.from_pretrained(moved)
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1.0)
    model.save_pretrained(moved, max_shard_size="40KB")
    (repository / "refs/main").write_text(COMMIT[::-1])

    newest = tmp_path / "models/newest"
    make_model(spec, CPU, newest, None)
    old, base, new = (load(path, CPU).embedding_VD for path in (folder, run / "checkpoint", newest))
    assert torch.equal(old, base)
    assert torch.allclose(new, old + 1.0)
    assert read_json(newest / "model.json")["sha256"] != manifest["sha256"]
    make_model(hub_model("org/tiny", COMMIT), CPU, tmp_path / "models/pinned", None)
    assert torch.equal(load(tmp_path / "models/pinned", CPU).embedding_VD, old)


def test_what_the_cache_holds_is_loaded_without_a_word_to_the_hub(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred jobs load a model; transformers, given its name, would ask for files that are not there each time."""
    make_model(hub_model("org/tiny"), CPU, tmp_path / "models/tiny", None)
    asked = []

    def refuse(*address: Any, **options: Any) -> None:
        asked.append(address)
        raise OSError("the network was asked for something")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    lm = load(tmp_path / "models/tiny", CPU)
    assert lm.name == "org/tiny"
    assert not asked


def test_what_left_the_cache_is_fetched_at_its_commit_again(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(hub_model("org/tiny"), CPU, tmp_path / "models/tiny", None)
    snapshot, away, known = repository / "snapshots" / COMMIT, tmp_path / "away", huggingface_hub.snapshot_download

    def download(name: str, revision: str | None = None, **options: Any) -> str:
        if options.get("local_files_only"):
            path: str = known(name, revision=revision, **options)
            return path
        assert (name, revision) == ("org/tiny", COMMIT)
        away.rename(snapshot)
        return str(snapshot)

    snapshot.rename(away)
    with pytest.raises(UserError, match=rf"^model org/tiny \(revision {COMMIT}\) cannot be fetched: the hub cannot"):
        load(tmp_path / "models/tiny", CPU)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load(tmp_path / "models/tiny", CPU).name == "org/tiny"


def test_a_hub_model_that_cannot_be_used_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    for path in (repository / "snapshots" / COMMIT).glob("model*"):
        path.unlink()
    spec = hub_model("org/tiny")
    with pytest.raises(UserError, match=r"model org/tiny: .* holds no \*\.safetensors file") as caught:
        make_model(spec, CPU, tmp_path / "models/tiny", None)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "models").iterdir())


def test_a_commit_that_the_cache_does_not_hold_is_told_without_network(repository: Path, tmp_path: Path) -> None:
    spec = hub_model("org/tiny", "f" * 40)
    with pytest.raises(UserError, match=r"model org/tiny \(revision f+\) cannot be fetched: the hub cannot be reached"):
        make_model(spec, CPU, tmp_path / "models/tiny", None)
    assert not (tmp_path / "models").exists()
