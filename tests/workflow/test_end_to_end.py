"""The workflow with the real `softtok`: a bare `snakemake` in a copy of the project, as a user runs it.

A still smaller demo goes from nothing to its report, a killed run goes on, the real GSM8K files take the same rules,
and so does the small rehearsal of the paper's grid.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.support.project import BIN, Project, shipped

pytestmark = pytest.mark.slow

MODES = ["hard-greedy", "hard-sample", "soft-greedy", "soft-sample", "fuzzy-greedy", "fuzzy-sample"]


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    """The demo with fewer and smaller everything."""
    config = shipped()
    toy = config["models"]["toy"]
    toy["toy"] |= {"width": 32, "layers": 2, "heads": 2, "mlp_width": 64, "steps": 30}
    toy["training"] |= {"steps": 4, "prompts_per_step": 2, "samples_per_prompt": 8, "warmup_steps": 1}
    toy["training"] |= {"validation_problems": 8, "validate_every": 2}
    for name, problems in (("train_sets", 60), ("test_sets", 4), ("choice_sets", 6)):
        for entry in config[name].values():
            if "toy" in entry and "task" in entry["toy"]:
                entry["toy"]["problems"] = problems
    for name in ("hard-sample", "soft-sample", "fuzzy-sample"):
        config["inference_modes"][name]["samples"] = 4
    for entry in config["inference_modes"].values():
        entry.pop("like", None)
    config["inference_modes"] = {name: config["inference_modes"][name] for name in MODES}
    config["inference_sets"] = {"six": MODES}
    config["studies"] = {"demo": config["studies"]["demo"] | {"seeds": [0, 1]}}
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: dict[str, Any]) -> Project:
    """The small demo, built once; its first attempt is killed in the middle."""
    project = Project.create(tmp_path_factory.mktemp("demo") / "project", small)
    project.build_interrupted("results/runs/toy/sums/*/*/manifest.json", "--cores", "2")
    return project


def test_every_output_is_there(finished: Project) -> None:
    report = finished.results / "reports/demo"
    # Snakemake leaves a hidden time stamp in folders that are outputs.
    assert {path.suffix for path in (report / "tables").glob("[!.]*")} == {".md", ".csv", ".tex", ".txt"}
    assert {path.suffix for path in (report / "figures").glob("[!.]*")} == {".svg", ".png", ".pdf"}
    page = (report / "report.html").read_text()
    assert "<svg" in page
    metrics = pd.read_csv(report / "metrics.csv", keep_default_na=False)
    cells = metrics[metrics.metric == "pass@k"].groupby(["training_mode", "seed", "test_set", "inference_mode"]).size()
    # (base + 3 modes x 2 seeds) x 2 test sets x (3 greedy modes with k = 1, 3 sample modes with k = 1, 2, 4).
    assert len(cells) == 7 * 2 * 6
    assert cells.groupby("inference_mode").max().to_dict() == {mode: 3 if "sample" in mode else 1 for mode in MODES}
    shares = {"unboxed", "cut_off", "refused", "timed_out"}
    assert set(metrics.metric) - shares == {
        *("pass@k", "accuracy", "nll_per_token", "cot_tokens", "entropy", "majority@k")
    }
    assert shares < set(metrics.metric)
    values = metrics.value.astype(float)
    assert values.notna().all()
    assert values[metrics.metric.isin(["pass@k", "majority@k", "accuracy", *shares])].between(0, 100).all()


def test_a_checkpoint_is_a_plain_hugging_face_folder(finished: Project) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (checkpoint,) = finished.folder.glob("results/runs/toy/sums/soft/seed0-*/checkpoint")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor) and embedding.shape[0] >= len(tokenizer.get_vocab())


def test_a_second_run_has_nothing_to_do(finished: Project) -> None:
    assert "Nothing to be done" in finished.build("--cores", "2")


def test_a_new_inference_mode_generates_itself_alone(finished: Project, small: dict[str, Any], tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    folder = project.folder
    (shard,) = folder.glob("results/runs/toy/none/base/*/.state/shards")
    before = {path: path.read_bytes() for path in shard.iterdir()}
    config = json.loads(json.dumps(small))
    config["inference_modes"]["hard-warm"] = {"like": "hard-sample", "temperature": 1.5}
    config["inference_sets"]["six"] = [*MODES, "hard-warm"]
    config["studies"]["demo"] |= {"test_sets": ["sums"], "training_modes": ["hard"], "seeds": [0]}
    project.config = config
    project.build("--cores", "2")
    after = {path: path.read_bytes() for path in shard.iterdir()}
    assert {path: after[path] for path in before} == before, "shards of finished modes are only read"
    assert len(after) == len(before) + 1
    metrics = pd.read_csv(folder / "results/reports/demo/metrics.csv")
    assert "hard-warm" in set(metrics.inference_mode)


def test_real_gsm8k_flows_through(tmp_path: Path, real_data: Path) -> None:
    config = shipped()
    project = Project.create(tmp_path / "project", config)
    folder = project.folder
    project.build("--cores", "2", "gsm8k-smoke", "--config", f"data_root={real_data}")
    (train,) = folder.glob("results/data/train/gsm8k-few-*.parquet")
    problems = pd.read_parquet(train)
    assert len(problems) == config["train_sets"]["gsm8k-few"]["limit"]
    assert problems.question.iloc[0].startswith("Natalia sold clips")
    assert list(problems.gold.iloc[0]) == ["72"]
    assert all(gold.replace(",", "").lstrip("-").isdigit() for golds in problems.gold for gold in golds)
    (samples,) = folder.glob("results/runs/toy-bpe/gsm8k-few/soft/seed0-*/eval/gsm8k-few/*-????????.parquet")
    table = pd.read_parquet(samples)
    assert table.problem_id.nunique() == config["test_sets"]["gsm8k-few"]["limit"]
    assert (folder / "results/reports/gsm8k-smoke/report.html").exists()


def test_the_small_rehearsal_runs(tmp_path: Path, real_data: Path) -> None:
    """The smaller cut of `make rehearsal`: random bodies of both architectures at full vocabulary on real problems."""
    project = Project.create(tmp_path / "project", shipped())
    folder = project.folder
    project.build(
        *("--cores", "2", "--configfile", "workflow/rehearsal.yaml", "--config", f"data_root={real_data}"),
        *("--", "rehearsal-small"),
    )
    for model, rows, ends in (("random-llama", 128_256, 3), ("random-qwen", 151_936, 2)):
        (run,) = folder.glob(f"results/runs/{model}/gsm8k-cut/soft/seed0-*")
        config = json.loads((run / "checkpoint/config.json").read_text())
        assert config["vocab_size"] == rows
        assert len(json.loads((run / "checkpoint/generation_config.json").read_text())["eos_token_id"]) == ends
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in steps] == [0, 1, 2]
        assert any(line.get("gradient_norm", 0) > 0 for line in steps), (
            "some box closed, and there was something to learn"
        )
        assert all(line.get("recomputation_gap", 0) < 1e-3 for line in steps)
        assert json.loads((run / "manifest.json").read_text())["diverged"] is None
        (samples,) = run.glob("eval/gsm8k-cut/*-????????.parquet")
        table = pd.read_parquet(samples)
        # 2 problems, in 3 greedy modes once and in 3 sample modes 32 times.
        assert table.groupby("inference_mode").size().to_dict() == {m: 2 if "greedy" in m else 64 for m in MODES}
    metrics = pd.read_csv(folder / "results/reports/rehearsal-small/metrics.csv", keep_default_na=False)
    # 2 bases and 2 runs, everything of each: k = 1 in greedy modes, 1, 2, 4, ..., 32 in sample modes.
    assert (metrics.metric == "pass@k").sum() == 4 * (3 * 1 + 3 * 6)
    assert (metrics.metric == "accuracy").sum() == 4
    assert (folder / "results/reports/rehearsal-small/report.html").exists()


def test_a_study_is_timed_recorded_and_completed_in_parts(finished: Project, tmp_path: Path) -> None:
    """With what is measured here; numbers, tables and figures from its records are the workflow's own, to the byte.

    The page is not: it shows samples too, and records have no text of questions.
    """
    project, records = finished.copy(tmp_path / "project"), tmp_path / "records"
    for run in project.results.glob("runs/toy/sums/*/seed1-*"):
        shutil.rmtree(run)
    for path in project.results.glob("runs/toy/sums/fuzzy/seed0-*/choices/*.parquet"):
        path.unlink()
    shutil.rmtree(project.results / "reports")
    measure = [str(BIN / "softtok"), "measure", "demo", "--results", "results", "--out", "costs.json"]
    with project.command(*measure) as stopped:
        while not list(project.results.glob(".measuring*/*")):
            assert stopped.poll() is None
            time.sleep(0.05)
        stopped.terminate()
        assert stopped.wait(60) == 128 + signal.SIGTERM
    assert not list(project.results.glob(".measuring*")), "what it was measured in is removed also then"
    recorded = ["demo", "--records", str(records), "--cores", "2"]
    with project.timed(*recorded) as process:
        told = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, told
    assert "  3 x training toy, sums, hard" not in told and "  1 x training toy, sums, hard: start " in told
    assert "  4 x largest: start " in told and re.search(r"About .* for 13 jobs \(14 are done\)", told)
    assert "27 of 27 jobs, all done" in told
    assert told.index("hard, seed 0: recorded, ") < told.index("Measuring"), "what has finished is recorded at once"
    assert told.index("seed 1: recorded, ") < told.index("27 of 27 jobs"), "before the study's end"
    assert not list(project.results.glob(".measuring*"))
    report = [str(BIN / "softtok"), "report", "--records", str(records), "--out", "again"]
    assert subprocess.run(report, cwd=project.folder, check=True, capture_output=True).stdout == b""
    assert "<svg" in (project.folder / "again/report.html").read_text(encoding="utf-8")
    for path in (project.folder / "again").rglob("*"):
        if path.is_file() and path.name != "report.html":
            made = project.results / "reports/demo" / path.relative_to(project.folder / "again")
            assert path.read_bytes() == made.read_bytes(), path
    shutil.rmtree(project.results)
    with project.timed(*recorded, "--unrecorded") as process:
        assert process.communicate(timeout=100)[0] == f"All runs of demo are recorded in {records}.\n"
