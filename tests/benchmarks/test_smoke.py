"""Every measurement runs at its smallest size, from the command to the files, and its rows are whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.run import NAMES, order

ROOT = Path(__file__).parents[2]
CASES = {
    "rollout_vs_generate": ["S P=8 T=4", "S P=8 T=4, share of the bound"],
    "soft_vs_hard": ["S P=8 T=4"],
    "fuzzy_vs_hard": ["S P=8 T=4"],
    "step_vs_trl": ["S P=8 T=4 hard", "S P=8 T=4 soft", "S P=8 T=4 fuzzy"],
    "rollout_floor": ["S", "S, products as PyTorch multiplies"],
    "objective_memory": ["d=32 V=4096 memory", "d=32 V=4096 time"],
    "evaluate_throughput": [
        "2 x 32: kept over dropped",
        "2 x 32: dropped over replaced",
        "2 x 32, GSM8K's lengths: dropped over replaced",
        "2 x 32, GSM8K's lengths: decode steps, dropped over replaced",
    ],
    "shared_beginning": ["S 8 x 32+4 T=2"],
    "workflow_overhead": [
        "start-up of `softtok train`",
        "demo grid: share not spent in work",
        "dry run of `paper`",
        "dry run of a study of 20 runs",
        "check of a finished demo",
    ],
    "growth": ["G=16 time", "G=16 memory", "G=32 time", "G=32 memory"],
    "bptt_cost": [
        "2 CoT tokens time",
        "2 CoT tokens time, rollout and update counted",
        "2 CoT tokens memory",
    ],
    "pathwise_cost": [
        f"2 CoT tokens{untied}, K={k} {what}"
        for untied in ("", ", untied")
        for k in (0, 1, 2)
        for what in ("time", "memory")
    ],
}
OF_A_DEMO = {"demo grid: share not spent in work", "check of a finished demo"}  # without a number where none is made


@pytest.mark.slow
def test_every_measurement_runs(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    command = [sys.executable, "-m", "benchmarks.run", "--tiny", "--threads", "1", "--out", str(tmp_path)]
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=800)
    assert made.returncode == 0, made.stdout + made.stderr
    found = json.loads((tmp_path / "peers.json").read_text())
    assert found["plan"] == "tiny"
    assert {name: list(of) for name, of in found["product_gflops"].items()} == {
        dtype: ["64 rows", "2048 rows"] for dtype in ("float32", "bfloat16")
    }
    assert all(rate > 0 for of in found["product_gflops"].values() for rate in of.values())
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        rows.setdefault(row["measurement"], []).append(row)
    assert {name: [row["case"] for row in cases] for name, cases in rows.items()} == CASES
    assert {order(name) for name in rows} == set(range(len(NAMES))), "each measurement has rows"
    for row in found["rows"]:
        if row["case"] not in OF_A_DEMO:
            assert row["ratio"] > 0, row
            assert row["repeats"] == 1, row
    for row in rows["step_vs_trl"]:
        assert row["sides"].keys() == {"TRL", "ours"}
        for times in row["sides"].values():
            assert times.keys() == {"wall_min", "wall_median", "wall_max", "cpu_min", "cpu_median"}
    # What is counted, not timed: rows are dropped where the option says so, and tiles bound the vocabulary's memory.
    assert rows["evaluate_throughput"][0]["bound"] > 1, rows["evaluate_throughput"][0]["note"]
    assert rows["objective_memory"][0]["ratio"] < 0.7, rows["objective_memory"][0]["note"]
    table = (tmp_path / "peers.md").read_text()
    assert all(f"| {case} |" in table for cases in CASES.values() for case in cases)
    assert (tmp_path / "growth.svg").stat().st_size > 1000
