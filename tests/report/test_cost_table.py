"""The table of costs: everything that a study took stands once under its mode, its job and its device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from softtok.report.collect import collect
from softtok.report.costs import CostLine, caption, cost_lines, counted
from softtok.report.page import make_report
from softtok.report.study import Study
from softtok.storage.costs import JobCost, Part, write_cost
from softtok.storage.files import read_json
from tests.support.report_specs import report_spec
from tests.support.synthetic_runs import write_study

CPU, GPU = "cpu (4 cores), fp32", "NVIDIA H100, bf16"


def part(name: str, made_on: str = CPU, wall_s: float | None = 3600.0, tokens: int = 7200) -> Part:
    rate = tokens / wall_s if wall_s and tokens else None
    return Part(
        inference_mode=name, made_on=made_on, wall_s=wall_s, tokens=tokens, tokens_per_s=rate, peak_memory_mb=900.0
    )


@pytest.fixture
def sketch(tmp_path: Path) -> dict[str, Any]:
    """A study of two seeds of a mode, of 10 steps each, and its base."""
    return write_study(tmp_path, modes=("soft",), seeds=2, test_sets=("sums",), problems=3, steps=10, toy=False)


def study_lines(tmp_path: Path, sketch: dict[str, Any]) -> tuple[list[CostLine], str]:
    study = Study(report_spec(sketch))
    costs = collect(study, tmp_path).costs
    return cost_lines(costs, study.rows), caption(costs)


def folder(tmp_path: Path, sketch: dict[str, Any], mode: str, seed: int = 0) -> Path:
    (path,) = (run["path"] for run in sketch["runs"] if (run["mode"], run["seed"]) == (mode, seed))
    return tmp_path / str(path)


def edit_lines(run: Path, change: Any) -> None:
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_manifest(run: Path, **facts: Any) -> None:
    manifest = read_json(run / "manifest.json")
    (run / "manifest.json").write_text(json.dumps(manifest | facts))


def test_trainings_are_summed_by_the_device_of_each_step(tmp_path: Path, sketch: dict[str, Any]) -> None:
    """A run that goes on on another device is a part of both, also with the time between its steps."""
    for seed in (0, 1):

        def change(line: dict[str, Any], seed: int = seed) -> None:
            late = line["step"] > 6
            line["made_on"] = GPU if seed and late else CPU
            if line["step"]:
                line |= {"cot_tokens": 40.0, "answer_tokens": 10.0, "peak_memory_mb": 1000.0 + line["step"]}
                line["wall_s"] = 360.0 * line["step"]

        edit_lines(folder(tmp_path, sketch, "soft", seed), change)
        edit_manifest(folder(tmp_path, sketch, "soft", seed), wall_s=7200.0)
    lines, _ = study_lines(tmp_path, sketch)
    trained = {line.made_on: line for line in lines if line.kind == "training"}
    # 64 rows of 50 tokens in steps of half a second; 3600 s to step 10, and as long again after it.
    assert trained[CPU][3:] == ("51.2 k", "0.5", "6,400", "1.06", f"{(7200 + 6 * 360) / 3600:.2f}")
    assert trained[GPU][3:] == ("12.8 k", "0.5", "6,400", "1.06", f"{(4 * 360 + 3600) / 3600:.2f}")


def test_a_run_of_an_earlier_version_has_its_hours_and_device(tmp_path: Path, sketch: dict[str, Any]) -> None:
    for seed in (0, 1):
        edit_manifest(folder(tmp_path, sketch, "soft", seed), wall_s=1800.0)
    lines, told = study_lines(tmp_path, sketch)
    assert [line for line in lines if line.kind == "training"] == [
        CostLine(lines[0].row, "training", "cpu (4 cores)", "–", "0.5", "–", "–", "1.00")
    ]
    assert told.endswith("Not counted: 6 of 6 evaluations, which did not record what they took."), "3 runs, 2 sets"


def test_evaluations_are_summed_and_a_mode_of_two_inference_sets_counts_once(
    tmp_path: Path, sketch: dict[str, Any]
) -> None:
    sketch["tests"] = {"sums": {"six": "89ab4567", "four": "99ab4567"}}
    for seed in (0, 1):
        run = folder(tmp_path, sketch, "soft", seed)
        six, four = (run / "eval/sums" / f"{name}.parquet" for name in ("six-89ab4567", "four-99ab4567"))
        for suffix in (".parquet", ".entropy.csv"):
            four.with_suffix(suffix).write_bytes(six.with_suffix(suffix).read_bytes())
        write_cost(six, JobCost(made_on=CPU, ready_s=36.0, parts=[part("a"), part("b"), part("b", GPU)]))
        write_cost(four, JobCost(made_on=CPU, ready_s=36.0, parts=[part("a"), part("c", tokens=3600)]))
        write_cost(
            run / "choices/order-cdef0123.parquet", JobCost(made_on=CPU, ready_s=0.0, parts=[part("", tokens=0)])
        )
    base = folder(tmp_path, sketch, "base")
    (base / "eval/sums/four-99ab4567.parquet").write_bytes((base / "eval/sums/six-89ab4567.parquet").read_bytes())
    (base / "eval/sums/four-99ab4567.entropy.csv").write_bytes(
        (base / "eval/sums/six-89ab4567.entropy.csv").read_bytes()
    )
    write_cost(base / "choices/order-cdef0123.parquet", JobCost(made_on=GPU, ready_s=0.0, parts=[part("", GPU, None)]))
    lines, told = study_lines(tmp_path, sketch)
    measured = {line.made_on: line for line in lines if line.kind == "evaluation"}
    assert set(measured) == {CPU, GPU}
    assert {line.row.training_mode for line in measured.values() if line.row} == {"soft"}, (
        "nothing is known of the base's"
    )
    assert measured[CPU].tokens == "36 k" and measured[CPU].hours == f"{2 * (4 * 3600 + 2 * 36) / 3600:.2f}"
    assert measured[CPU].tokens_per_s == f"{36000 / (2 * 3 * 3600):.0f}", "a choice set generates nothing"
    assert (measured[GPU].tokens, measured[GPU].hours, measured[GPU].peak_gb) == ("14.4 k", "2.00", "0.944")
    assert "Not counted: 3 of 9 evaluations" in told
    totals = {line.made_on: line for line in lines if line.row is None}
    assert totals[CPU].hours == measured[CPU].hours and totals[GPU].hours == "2.00"


def test_the_page_shows_the_costs(tmp_path: Path, sketch: dict[str, Any]) -> None:
    run = folder(tmp_path, sketch, "soft")
    write_cost(run / "eval/sums/six-89ab4567.parquet", JobCost(made_on=GPU, ready_s=0.0, parts=[part("a", GPU)]))
    make_report(report_spec(sketch), tmp_path / "out", tmp_path)
    page = (tmp_path / "out/report.html").read_text()
    section = page.split('<section id="costs">')[1].split("</section>")[0]
    assert f'<td class="label">{GPU}</td><td>7.2 k</td><td>–</td><td>2</td><td>0.944</td><td>1.00</td>' in section
    assert 'href="#costs"' in page


def test_numbers_of_tokens_have_three_digits() -> None:
    assert [counted(n) for n in (0, 999, 1000, 999_499, 999_500, 1_234_567, 45_600_000_000)] == (
        ["0", "999", "1 k", "999 k", "1 M", "1.23 M", "45.6 G"]
    )
