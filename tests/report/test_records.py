"""Records of finished runs: a report from them is that from results, and nothing else is taken for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softtok.__main__ import main
from softtok.config.grid import Study
from softtok.report.page import make_report
from softtok.storage.costs import JobCost, Part, write_cost
from softtok.storage.files import file_sha256, read_json, write_manifest, write_table
from tests.support.damage import seal
from tests.support.project import Project, shipped
from tests.support.synthetic_runs import write_planned
from tests.support.thoughts import made_up_step

STUDY = "small"
HOST, FOLDER = "machine-of-someone", "/home/someone/softtok"


class Recorded(Project):
    """A project with finished runs, and the folder of their records."""

    @cached_property
    def study(self) -> Study:
        return self.grid().studies[STUDY]

    @property
    def records(self) -> Path:
        return self.folder / "records"

    def run(self, mode: str, seed: int, root: str = "results") -> Path:
        path = next(run.folder for run in self.study.runs.values() if (run.name, run.seed) == (mode, seed))
        return self.folder / path.replace("results", root, 1)

    def call(self, command: str, *words: str) -> int:
        return main([command, *words, "--config", str(self.path)])

    def record(self, *words: str) -> int:
        to = ["--results", str(self.results), "--to", str(self.records)]
        return self.call("records", STUDY, *to, *words)

    def report(self, out: str, *words: str) -> int:
        return self.call("report", *words, "--records", str(self.records), "--out", str(self.folder / out))


def write_runs(project: Recorded) -> None:
    """Writes finished runs with the specs and traces that jobs give to theirs."""
    spec = project.study.spec
    write_planned(project.folder, spec, problems=12, steps=8, cot=48, diverged=(("soft", 1),))
    seal(project.folder, spec)
    for seed, run in enumerate(project.study.runs.values()):
        path = project.folder / run.folder / "manifest.json"
        manifest = read_json(path)
        del manifest["checksum"]
        start = {"event": "start", "time": "2026-01-02T03:04:05+0000", "host": HOST, "pid": 77}
        failed = {**start, "event": "failed", "error": f"OSError('{FOLDER}/x')", "last_lines": [f'File "{FOLDER}/y"']}
        facts = {
            "spec": run.spec.model_dump(mode="json"),
            "attempts": [start, failed, start],
            "checkpoint_sha256": f"{seed:064x}",
        }
        write_manifest(path, manifest | facts | {"provenance": manifest["provenance"] | {"host": HOST}})
        for name in ("checkpoint/model.safetensors", ".state/locks/train", ".state/shards/a.jsonl"):
            project.write(f"{run.folder}/{name}")
        if seed:  # the first one is of a version that did not note what its evaluations took
            for rows in (project.folder / run.folder).glob("*/**/*.parquet"):
                cost = Part(
                    inference_mode="a", made_on="a GPU", wall_s=7.0, tokens=9, tokens_per_s=1.0, peak_memory_mb=None
                )
                write_cost(rows, JobCost(made_on="a GPU", ready_s=3600.0, parts=[cost]))
            for rows in (project.folder / run.folder).glob("eval/*/*-????????.parquet"):
                write_thought(rows)
    for data in project.grid().data.values():
        path = project.folder / data.path
        if path.exists():
            table = pa.table({"question": pd.read_parquet(path)["question"]})
            write_table(path, table)
            told = {
                "rows": 3,
                "flagged": [{"id": "a", "reason": "odd"}],
                "reasons": {"dropped": {}, "flagged": {"odd": 1}},
            }
            whole = told | {"sha256": file_sha256(path), "spec": data.spec.model_dump(mode="json")}
            write_manifest(path.with_suffix(".json"), whole)


def write_thought(rows: Path) -> None:
    """Writes the steps of one soft sample."""
    soft = pd.read_parquet(rows).query("inference_mode == 'soft-sample'").iloc[0]
    where = {name: soft[name] for name in ("inference_mode", "problem_id", "sample")}
    rng = np.random.default_rng(0)
    steps = [made_up_step(rng, where, step) for step in range(soft["cot_tokens"])]
    write_table(rows.with_suffix(".thoughts.parquet"), pa.Table.from_pylist(steps))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    project, config = Recorded(tmp_path_factory.mktemp("finished")), shipped()
    study = config["studies"]["demo"] | {"training_modes": ["hard", "soft"], "seeds": [0, 1]}
    project.config = config | {"studies": {STUDY: study}, "run": [STUDY]}
    write_runs(project)
    overlap = project.folder / project.study.spec.data["test"]["sums"]
    assert overlap.exists()
    assert project.record() == 0
    return project


@pytest.fixture
def project(finished: Recorded, tmp_path: Path) -> Recorded:
    return finished.copy(tmp_path / "project")


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a report; the page says where a run lies, as it can be asked to think in results only."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: content.replace(b'"path":"results/runs/', b'"path":"runs/') for name, content in found.items()}


def test_a_report_from_records_is_that_from_results(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    make_report(project.study.spec, project.folder / "report", project.folder)
    shutil.rmtree(project.results)
    for words, out in (((), "as-recorded"), ((STUDY,), "as-configured")):
        assert project.report(out, *words) == 0
        assert contents(project.folder / out) == contents(project.folder / "report"), "byte for byte, pictures too"
    assert capsys.readouterr().out == ""
    page = (project.folder / "report/report.html").read_text()
    assert "Many problems were flagged" in page and "partial" not in page
    assert "a GPU</td>" in page and "Not counted: 3 of 15 evaluations" in page


def test_records_hold_no_weights_and_no_trace_of_the_machine(project: Recorded) -> None:
    found = contents(project.records)
    endings = {name.rpartition(".")[2] for name in found}
    assert endings == {"json", "jsonl", "parquet", "csv"}
    assert not [name for name in found if "checkpoint" in name or "/." in name]
    for name, content in found.items():
        for trace in (HOST, FOLDER, str(project.folder), "secret-host", '"pid"'):
            assert trace.encode() not in content, name
    questions = pd.read_parquet(next(project.records.glob("data/test/sums-*.parquet")))["question"]
    assert questions.str.fullmatch("[0-9a-f]{16}").all(), "no question of a data set"


def test_recording_again_changes_nothing(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(project.records)
    assert project.record() == 0
    assert contents(project.records) == before
    assert capsys.readouterr().out.count("recorded before\n") == 5
    shutil.rmtree(project.results)
    assert project.record() == 0
    assert contents(project.records) == before


def test_a_run_is_recorded_when_all_of_it_has_finished_and_told_of_before(
    project: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project.records)
    gone, lacking = project.run("soft", 1), next(project.run("hard", 1).glob("eval/long-sums/*.parquet"))
    shutil.move(gone, project.folder / "aside")
    kept = lacking.read_bytes()
    lacking.unlink()
    assert project.record() == 0
    out = capsys.readouterr().out
    assert "toy, sums, soft, seed 1: not trained\n" in out
    assert f"toy, sums, hard, seed 1: not finished: eval/long-sums/{lacking.name}\n" in out
    assert out.count("recorded, ") == 3
    assert project.report("partial") == 0
    missing = "missing: toy, sums, hard, seed 1: not recorded\nmissing: toy, sums, soft, seed 1: not recorded\n"
    assert capsys.readouterr().out == missing
    page = (project.folder / "partial/report.html").read_text()
    assert "This report is partial: 3 of 5 runs are here." in page
    assert "<li>toy, sums, hard, seed 1: not recorded</li>" in page
    assert "of 2 planned runs per row" in (project.folder / "partial/tables/hard-inference.md").read_text()
    lacking.write_bytes(kept)
    shutil.move(project.folder / "aside", gone)
    assert project.record() == 0
    assert capsys.readouterr().out.count("recorded before\n") == 3
    make_report(project.study.spec, project.folder / "report", project.folder)
    assert project.report("partial") == 0
    assert contents(project.folder / "partial") == contents(project.folder / "report"), "in parts or at once"


def test_any_run_alone_makes_a_report(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """The base has no training, and a trained run no base to be compared with."""
    whole = project.folder / "whole"
    shutil.copytree(project.records, whole)
    for kept in ("base", "soft"):
        shutil.rmtree(project.records)
        shutil.copytree(whole, project.records)
        for mode, seed in (("base", 0), ("hard", 0), ("hard", 1), ("soft", 0), ("soft", 1)):
            if (mode, seed) != (kept, 0):
                shutil.rmtree(project.run(mode, seed, "records"))
        assert project.report(kept) == 0
        assert capsys.readouterr().out.count("missing: ") == (2 if kept == "base" else 3)
        assert "partial: 1 of 5 runs are here" in (project.folder / kept / "report.html").read_text()
    shutil.rmtree(project.run("soft", 0, "records"))
    assert project.report("none") == 1
    assert "holds no run of 'small' yet" in capsys.readouterr().err


def rates(config: dict[str, dict[str, dict[str, object]]]) -> None:
    config["training_modes"]["soft"]["training"] = {"learning_rate": 0.125, "estimator": "pathwise"}


def test_records_of_other_settings_are_not_taken_for_the_present_ones(
    project: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(project.records)
    project.edit(rates)
    assert project.report("out", STUDY) == 0
    out = capsys.readouterr().out
    assert out.count("missing: ") == out.count("toy, sums, soft, seeds 0, 1: recorded with other settings only (") == 1
    assert "now 0.125" in out and "training.estimator: score, now pathwise" in out
    soft = [
        line for line in (project.folder / "out/tables/hard-inference.md").read_text().splitlines() if "| soft" in line
    ]
    assert soft and all("| 0 |" in line for line in soft)
    assert project.record() == 1
    told = capsys.readouterr().err
    assert "and 1 more: recorded with other settings than the study 'small' has now (training.learning_rate: " in told
    assert contents(project.records) == before
    assert project.record("--replace") == 0
    assert capsys.readouterr().out.count("removed, as its settings") == 2
    assert sorted(path.parent.name for path in project.records.glob("runs/toy/*/*/seed*")) == ["base", "hard", "hard"]


def test_a_seed_that_is_added_keeps_the_others(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(project.records / "runs")
    shutil.rmtree(project.results)
    project.edit(lambda config: config["studies"][STUDY].update(seeds=[0, 1, 2]))
    assert project.record() == 0
    assert "is replaced by small-" in capsys.readouterr().out
    assert contents(project.records / "runs") == before
    assert len(list(project.records.glob("*.json"))) == 1
    assert project.report("out") == 0
    assert capsys.readouterr().out == (
        "missing: toy, sums, hard, seed 2: not recorded\nmissing: toy, sums, soft, seed 2: not recorded\n"
    )


def test_another_execution_is_not_mixed_with_a_recorded_one(
    project: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluations of one checkpoint beside the curves of another would be a run that never was."""
    before = contents(project.records)
    run = project.run("hard", 0)
    manifest = read_json(run / "manifest.json")
    del manifest["checksum"]
    write_manifest(run / "manifest.json", manifest | {"checkpoint_sha256": "ab" * 32})
    path = next(project.run("soft", 0).glob("choices/*.parquet"))
    table = pq.read_table(path)
    write_table(path, pa.table(table.to_pydict() | {"correct": [True] * table.num_rows}))
    assert project.record() == 0
    out = capsys.readouterr().out
    assert "hard, seed 0: recorded before, from another training; kept" in out
    assert f"soft, seed 0: recorded before; kept, though choices/{path.name} was made again" in out
    assert contents(project.records) == before
    assert project.record("--replace") == 0
    changed = {name for name, content in contents(project.records).items() if before[name] != content}
    assert {name.split("/")[3] for name in changed} == {"hard", "soft"} and len(changed) == 4


def swapped_seed(project: Recorded) -> Path:
    one, other = (project.run("hard", seed, "records") for seed in (0, 1))
    shutil.rmtree(one)
    shutil.copytree(other, one)
    return one / "record.json"


def file_of_another_seed(project: Recorded) -> Path:
    path = next(project.run("hard", 0, "records").glob("eval/sums/*.parquet"))
    shutil.copy(path, project.run("soft", 0, "records") / "eval/sums" / path.name)
    return project.run("soft", 0, "records") / "eval/sums" / path.name


def cut_short(project: Recorded) -> Path:
    path = next(project.run("hard", 0, "records").glob("choices/*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    return path


def other_spec(project: Recorded) -> Path:
    """A run of which manifest and record are whole, with the settings of another."""
    path = project.run("hard", 0, "records") / "manifest.json"
    manifest = {**read_json(path), "spec": read_json(project.run("soft", 0) / "manifest.json")["spec"]}
    del manifest["checksum"]
    write_manifest(path, manifest)
    record = read_json(path.with_name("record.json"))
    del record["checksum"]
    record["files"]["manifest.json"] = file_sha256(path)
    write_manifest(path.with_name("record.json"), record)
    return path


def weights(project: Recorded) -> Path:
    path = project.run("hard", 0, "records") / "model.safetensors"
    path.write_bytes(b"x")
    return path


def changed_study(project: Recorded) -> Path:
    (path,) = project.records.glob("*.json")
    path.write_text(path.read_text().replace('"seed":1', '"seed":7', 1))
    return path


def lost_file(project: Recorded) -> Path:
    path = next(project.run("hard", 0, "records").glob("eval/sums/*.csv"))
    path.unlink()
    return path


def lost_data(project: Recorded) -> Path:
    path = next(project.records.glob("data/train/*.parquet"))
    path.unlink()
    return path


def other_data(project: Recorded) -> Path:
    """The questions of another set, whole, under the name of this one."""
    one, other = (next(project.records.glob(f"data/test/{name}-*.parquet")) for name in ("sums", "long-sums"))
    for suffix in (".parquet", ".json"):
        shutil.copy(other.with_suffix(suffix), one.with_suffix(suffix))
    return one.with_suffix(".json")


def unfinished(project: Recorded) -> Path:
    path = project.run("soft", 1, "records") / "record.json"
    path.unlink()
    return path


@pytest.mark.parametrize(
    "harm",
    [
        *(swapped_seed, file_of_another_seed, cut_short, other_spec, weights),
        *(changed_study, lost_file, lost_data, other_data, unfinished),
    ],
)
def test_a_damaged_record_is_one_line(
    harm: Callable[[Recorded], Path], project: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    path = harm(project)
    for words in ((), (STUDY,)):
        assert project.report("out", *words) == 1
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and f"softtok: error: {path}" in error
    assert not (project.folder / "out").exists()


def test_thoughts_are_recorded_and_on_the_page_of_the_records(project: Recorded) -> None:
    assert project.record() == 0
    made = sorted(path.relative_to(project.results) for path in project.results.glob("runs/**/*.thoughts.parquet"))
    kept = sorted(path.relative_to(project.records) for path in project.records.glob("**/*.thoughts.parquet"))
    assert made and kept == made
    assert all((project.records / path).read_bytes() == (project.results / path).read_bytes() for path in kept)
    assert project.report("page") == 0
    page = (project.folder / "page/report.html").read_text()
    assert page.count('id="part-thoughts-') == len(made)


def test_another_cost_is_no_other_result(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation that is gathered again from its samples took another time to load."""
    before = contents(project.records)
    costs = sorted(project.run("hard", 0).glob("*/**/*.cost.json"))
    assert costs and len([name for name in before if name.endswith(".cost.json")]) == 4 * len(costs)
    costs[0].write_text(costs[0].read_text().replace("3600.0", "3601.0"))
    costs[-1].unlink()
    assert project.record() == 0
    assert "made again" not in capsys.readouterr().out
    assert contents(project.records) == before
    recorded = project.run("hard", 0, "records") / costs[0].relative_to(project.run("hard", 0))
    recorded.write_text(costs[0].read_text())
    assert project.report("out") == 1
    assert f"{recorded} is damaged" in capsys.readouterr().err


def recorded_now(project: Recorded, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Records, and returns the lines about runs that were recorded by that; a report from the records is made."""
    assert project.record(*words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": recorded, " in line]
    assert project.report("out") == 0
    capsys.readouterr()
    return lines


def test_what_a_record_lacks_is_added(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """A run may be recorded in the moment between its last result and what that cost."""
    before, run = contents(project.records), project.run("hard", 0)
    shutil.rmtree(project.records)
    cost = next(run.glob("choices/*.cost.json"))
    kept = cost.read_bytes()
    cost.unlink()
    assert len(recorded_now(project, capsys)) == 5 and contents(project.records) != before
    cost.write_bytes(kept)
    (line,) = recorded_now(project, capsys)
    assert "hard, seed 0" in line and contents(project.records) == before


def test_a_damaged_record_is_made_again_as_its_message_says(
    project: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(project.records)
    rows = next(project.run("hard", 0, "records").glob("eval/sums/*-????????.parquet"))
    train = next(project.records.glob("data/train/*.parquet"))
    for path in (rows, train, train.with_suffix(".json")):
        path.write_bytes(path.read_bytes()[:-100])
        assert project.report("out") == 1
        assert f"{path} is damaged" in (error := capsys.readouterr().err)
        assert "remove it and run `softtok records` again" in error
        path.unlink()
        recorded_now(project, capsys)
        assert contents(project.records) == before


def test_a_run_is_not_recorded_without_its_problems(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(project.records)
    shutil.rmtree(project.records)
    shutil.move(project.results / "data", project.folder / "aside")
    assert project.record() == 0
    out = capsys.readouterr().out
    assert out.count(": not recorded: ") == 5 and ".parquet is missing; snakemake makes it\n" in out
    assert not list(project.records.glob("runs/**/record.json"))
    shutil.move(project.folder / "aside", project.results / "data")
    assert len(recorded_now(project, capsys)) == 5 and contents(project.records) == before


def test_a_record_that_is_replaced_keeps_nothing_of_the_old_one(
    project: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in [*project.run("hard", 0).glob("**/*.cost.json"), *project.run("hard", 0).glob("**/*.thoughts.parquet")]:
        path.unlink()
    assert not recorded_now(project, capsys), "what is recorded stays"
    assert len(recorded_now(project, capsys, "--replace")) == 5
    assert not list(project.run("hard", 0, "records").glob("**/*.cost.json"))


def harms_of_results(project: Recorded) -> Iterator[Path]:
    for pattern in ("eval/sums/*.parquet", "eval/sums/*.csv", "choices/*.parquet", "metrics.jsonl", "manifest.json"):
        path = next(project.run("hard", 0).glob(pattern))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        yield path
        path.write_bytes(content)
    manifest = project.run("hard", 0) / "manifest.json"
    content = manifest.read_bytes()
    own, other = (read_json(project.run("hard", seed) / "manifest.json") for seed in (0, 1))
    del own["checksum"]
    write_manifest(manifest, own | {"spec": other["spec"]})
    yield project.run("hard", 0)
    manifest.write_bytes(content)


def test_damaged_results_are_not_recorded(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(project.records)
    for path in harms_of_results(project):
        assert project.record() == 1
        out, error = capsys.readouterr()
        assert error.count("\n") == 1 and str(path) in error, error
        assert "seed 0: recorded" not in out.replace("base, seed 0: recorded", "")
        assert not list(project.records.glob("runs/toy/sums/hard/seed0-*/record.json"))
    assert project.record() == 0


def test_a_folder_of_records_belongs_to_one_study(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    project.edit(lambda config: config["studies"].update(other=config["studies"][STUDY]))
    where = ["--results", str(project.results), "--to", str(project.records)]
    assert project.call("records", "other", *where) == 1
    assert "is of the study 'small'; give 'other' a folder of its own" in capsys.readouterr().err
    assert project.call("report", "--records", str(project.results), "--out", str(project.folder / "out")) == 1
    assert "holds no records of a study" in capsys.readouterr().err


def test_a_report_is_of_a_spec_or_of_records(project: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    (spec,) = project.records.glob("*.json")
    where = ["--root", str(project.records)]
    assert main(["report", "--spec", str(spec), "--out", str(project.folder / "out"), *where]) == 0, "the same files"
    assert main(["report", STUDY, "--spec", str(spec), "--out", "out"]) == 1
    assert main(["report", "--records", str(project.records), "--out", "out", *where]) == 1
    assert capsys.readouterr().err.count("\n") == 2
    assert json.loads(spec.read_text())["study"] == STUDY
