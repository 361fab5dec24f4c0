"""Specs on their way from the grid to the job: nothing is lost, and what is wrong is one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softtok.__main__ import main
from softtok.config.grid import Grid
from softtok.config.load import read
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import ChoicesSpec, EvaluationSpec, ModelSpec, ReportSpec, RunSpec, parse
from softtok.errors import UserError
from softtok.problems.spec import DataSpec
from softtok.storage.files import content_hash
from softtok.storage.records import Record
from tests.support.configurations import grid_of
from tests.support.project import ROOT
from tests.support.specs import base_spec, data_spec, evaluation_spec, toy_model, train_spec

JOBS: dict[str, type[Record]] = {
    "data": DataSpec,
    "models": ModelSpec,
    "runs": RunSpec,
    "evaluations": EvaluationSpec,
    "choices": ChoicesSpec,
    "studies": ReportSpec,
}


@pytest.fixture(scope="module")
def shipped() -> Grid:
    """The grid of config.yaml and the rehearsal's file."""
    return Grid(read([ROOT / "config.yaml", ROOT / "workflow/rehearsal.yaml"]))


@pytest.mark.parametrize("kind", JOBS)
def test_every_job_is_told_just_what_the_grid_says(kind: str, shipped: Grid, tmp_path: Path) -> None:
    jobs = getattr(shipped, kind)
    assert len(jobs) > 2
    for job in jobs.values():
        assert parse(JOBS[kind], job.json) == job.spec
        (tmp_path / "spec.json").write_text(job.json, encoding="utf-8")
        again = parse(JOBS[kind], str(tmp_path / "spec.json"))
        assert again == job.spec
        assert again.as_json() == job.json, "the job's manifest says what its path does"


def test_a_report_is_told_the_order_of_the_studys_lists(shipped: Grid) -> None:
    """Not that of names: equal mappings may differ in it."""
    spec = shipped.studies["demo"].spec
    told = parse(ReportSpec, spec.as_json())
    assert list(told.inference_modes) == list(spec.inference_modes) == shipped.config.inference_sets["six"]
    assert list(told.inference_modes) != sorted(told.inference_modes)


def test_a_hash_is_that_of_the_json_with_sorted_keys(shipped: Grid) -> None:
    for run in shipped.runs.values():
        assert run.hash == content_hash(json.loads(run.json))
        assert f"-{run.hash}" in run.folder


def test_the_runs_of_a_report_carry_their_resolved_settings(shipped: Grid) -> None:
    checked = 0
    for study in shipped.studies.values():
        for run in study.spec.runs:
            if run.training_mode == "base":
                assert run.mode is None and run.training is None
            else:
                names = (run.model, run.train_set, run.training_mode)
                assert run.training == shipped.config.training_of(*names)
                assert run.mode is not None
                of_entry = shipped.config.training_modes[run.training_mode].model_dump()
                assert run.mode.model_dump().items() <= of_entry.items()
                checked += 1
    assert checked > 100


def pairs(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """All mappings in JSON, with their paths."""
    if isinstance(value, dict):
        yield path, value
        for key, below in value.items():
            yield from pairs(below, (*path, key))
    if isinstance(value, list):
        for place, below in enumerate(value):
            yield from pairs(below, (*path, place))


FREE = {"config", "inference_modes", "inference_sets", "exclude", "order", "paper", "tests", "choices", "data"}
"""Mappings whose keys are names, or which the report shows as they are."""


@pytest.mark.parametrize("kind", JOBS)
def test_unknown_keys_are_one_line_that_says_where(kind: str, shipped: Grid) -> None:
    spec = next(reversed(getattr(shipped, kind).values())).spec
    places = [path for path, _ in pairs(spec.model_dump(mode="json"))]
    tried = [path for path in places if not path or (path[-1] not in FREE and "config" not in path)]
    tried = [path for path in tried if not {"tests", "data", "paper"} & set(path)][:60]
    assert len(tried) > 2 or kind == "choices"
    for path in tried:
        value = spec.model_dump(mode="json")
        place: Any = value
        for key in path:
            place = place[key]
        place["sede"] = 1
        with pytest.raises(UserError, match=r"^--spec: .*sede: unknown key") as caught:
            parse(JOBS[kind], json.dumps(value))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", JOBS)
def test_missing_keys_are_one_line_that_names_them(kind: str, shipped: Grid, tmp_path: Path) -> None:
    spec = next(iter(getattr(shipped, kind).values())).spec
    for name in (name for name, field in type(spec).model_fields.items() if field.is_required()):
        value = spec.model_dump(mode="json")
        del value[name]
        path = tmp_path / "spec.json"
        path.write_text(json.dumps(value))
        with pytest.raises(UserError) as caught:
            parse(JOBS[kind], str(path))
        assert str(caught.value) == f"{path}: {name}: this key is missing"


def test_wrong_values_say_where_also_within_unions() -> None:
    def told(kind: type[Record], spec: Record, *path: str, value: Any) -> str:
        changed = spec.model_dump(mode="json")
        place: Any = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(UserError) as caught:
            parse(kind, json.dumps(changed))
        return str(caught.value)

    sums = data_spec("test", {"toy": {"task": "sums", "problems": 3}})
    assert told(DataSpec, sums, "source", "split", value="tst").startswith(
        "--spec: source.split: 'tst' is not possible"
    )
    assert told(DataSpec, sums, "source", "kind", value="toi").startswith("--spec: source: ")
    assert told(DataSpec, sums, "kind", value="choice") == "--spec: fields: a choice set needs choices"
    assert told(ModelSpec, toy_model(), "source", "toy", "width", value=3).startswith(
        "--spec: source.toy.width: 3 is not"
    )
    assert told(RunSpec, train_spec(), "training", value=None).startswith("--spec: mode: train_set, ")
    assert told(RunSpec, train_spec(), "seed", value="0").startswith("--spec: seed: ")
    greedy = ("inference_modes", "hard-greedy", "temperature")
    assert told(EvaluationSpec, evaluation_spec(), *greedy, value=-1).startswith(f"--spec: {'.'.join(greedy)}: ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.json", "--spec nowhere.json: cannot be read (No such file or directory); give a file or JSON"),
        (".", "--spec .: cannot be read (Is a directory); give a file or JSON"),
        ('{"seed": ', "--spec: is not JSON (EOF while parsing a value at line 1 column 9)"),
        ("empty.json", "empty.json: is not JSON (EOF while parsing a value at line 1 column 0)"),
    ],
)
def test_what_is_no_spec_is_one_line(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text("")
    assert main(["data", "--spec", given, "--out", "set.parquet"]) == 1
    assert capsys.readouterr().err == f"softtok: error: {message}\n"
    with pytest.raises(UserError, match=r"^--runtime: thread: unknown key; did you mean 'threads'"):
        parse(RuntimeSettings, '{"thread": 1}', "runtime")


def test_an_untouched_model_is_not_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = base_spec(toy_model()).as_json()
    options = {"spec": spec, "runtime": "{}", "model": tmp_path, "data": tmp_path, "out": tmp_path / "out"}
    assert main(["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]) == 1
    assert "an untouched model, which is not trained; `softtok base`" in capsys.readouterr().err


def test_a_spec_is_not_changed_by_what_else_a_study_holds() -> None:
    one, other = grid_of(), grid_of(lambda config: config["studies"]["first"].update(seeds=[0, 1], title="More"))
    assert one.runs.keys() < other.runs.keys()
    assert all(other.runs[folder].spec == run.spec for folder, run in one.runs.items())


def test_settings_that_were_given_come_in_one_order(shipped: Grid) -> None:
    """Not in that of a set, which differs between processes: a report's hash is of them."""
    for study in shipped.config.studies.values():
        assert len(study.given()) > 2
        assert list(study.given()) == [name for name in type(study).model_fields if name in study.given()]
