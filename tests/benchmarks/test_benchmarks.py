"""The benchmarks: counted arithmetic is what PyTorch counts, the work is the same on all sides, and the driver runs one
measurement from end to end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, addmm_flop

from benchmarks import bounds, work
from benchmarks.driver import Rounds, interleave
from benchmarks.measurements import grid_overhead
from benchmarks.work import LARGE_ROWS, Load, Ours, Size, make_prompts, random_llama

SIZE = Size(width=32, layers=2, heads=4, key_heads=2, mlp_width=48, vocabulary=96)
LOAD = Load(prompt=8, new_tokens=6, prompts=3, samples=4)


@pytest.fixture(scope="module")
def ours() -> Ours:
    made = Ours(SIZE, LOAD)
    made.lm.model.set_attn_implementation("eager")  # its products are counted, where a fused kernel's are not
    return made


def counted(once) -> int:
    unknown = {  # to PyTorch's counter: the product that adds to a sum in place, and oneDNN's
        torch.ops.aten.addmm_: lambda total, a, b, **_: addmm_flop(total, a, b),
        torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0],
    }
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        once()
    return counter.get_total_flops()


def test_products_are_counted_as_pytorch_counts_them(ours):
    assert counted(ours.decode_products) == bounds.decode_product_flops(SIZE, LOAD)
    assert counted(ours.large_products) == bounds.large_product_flops(SIZE, LARGE_ROWS)
    assert counted(ours.mixture_products) == bounds.mixture_flops(SIZE, LOAD, "soft")
    assert bounds.mixture_flops(SIZE, LOAD, "fuzzy") == 0
    assert counted(ours.prefill) == bounds.prefill_flops(SIZE, LOAD)


def test_a_rollout_does_the_counted_arithmetic():
    """A bound above what the code does would be no bound, and one below it would say little."""
    ours = Ours(SIZE, LOAD)
    fused = bounds.attention_flops(SIZE, LOAD.prompts * LOAD.prompt**2)  # the prompts', which PyTorch does not see
    for mode in ("hard", "soft", "fuzzy"):
        decode = bounds.decode_flops(SIZE, LOAD) + bounds.mixture_flops(SIZE, LOAD, mode)
        least = decode + bounds.prefill_flops(SIZE, LOAD) - fused
        assert 1 <= counted(lambda mode=mode: ours.rollout(mode)) / least < 1.003, mode


def test_a_pass_does_the_counted_arithmetic(ours, monkeypatch):
    monkeypatch.setattr(work, "reward", lambda ids: float(sum(ids)))  # no two alike: rows without advantage are not run
    ours.lm.model.set_attn_implementation("softtok_grouped")
    out = {mode: ours.rollout(mode) for mode in ("hard", "soft", "fuzzy")}
    ours.lm.model.set_attn_implementation("eager")
    for mode, made in out.items():
        seen = counted(lambda mode=mode, made=made: ours.update(mode, made))
        assert 1 <= seen / bounds.pass_flops(SIZE, LOAD, mode) < 1.003, mode


def test_sizes_have_the_parameters_they_are_named_for():
    parameters = sum(p.numel() for p in random_llama(SIZE).parameters())
    norms = (2 * SIZE.layers + 1) * SIZE.width
    assert parameters - norms == (bounds.body_flops(SIZE) + bounds.head_flops(SIZE)) // 2


def test_every_row_samples_exactly_the_tokens(ours):
    ours.lm.model.set_attn_implementation("softtok_grouped")
    out = ours.rollout("hard")
    assert (out.cot_lengths == LOAD.new_tokens - 1).all()
    assert {len(answer) for answer in out.answers} == {1}
    assert [len(prompt) for prompt in make_prompts(SIZE, LOAD)] == [8, 6, 4]


def test_rounds_are_interleaved_and_the_first_is_forgotten():
    calls: list[str] = []

    def contestant(name: str, seconds: float):
        return lambda: calls.append(name) or {"wall_s": seconds, "cpu_s": seconds}

    rounds = interleave({"a": contestant("a", 2.0), "b": contestant("b", 1.0)}, seconds=60, most=3)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert rounds.repeats == 3
    row = rounds.row("m", "case", ("a", ""), ("b", ""), ("A", "B"), goal=1.5)
    assert (row.ratio, row.reached) == (2.0, True)
    short = interleave({"a": contestant("a", 1.0)}, seconds=-1)
    assert short.warm_up and short.repeats == 2, "two rounds count even where time is up"
    warm = interleave({"a": contestant("a", 1.0)}, seconds=-1, warm=True)
    assert warm.warm_up and warm.repeats == 2
    assert interleave({"a": contestant("a", 1.0)}, seconds=60, most=3, warm=True).repeats == 3


def test_ratio_is_of_the_minima():
    turns = {"a": [{"wall_s": w, "cpu_s": w} for w in (3.0, 9.0)], "b": [{"wall_s": w, "cpu_s": w} for w in (2.0, 1.0)]}
    row = Rounds(turns, True).row("m", "case", ("a", ""), ("b", ""), ("A", "B"), goal=4, better="less")
    assert (row.ratio, row.median, row.spread, row.reached) == (3.0, 4.0, (1.5, 9.0), True)


def test_overhead_of_a_finished_grid(tmp_path):
    """Two jobs of 10 s side by side, a pause in which nothing ran, one of 20 s: 1 - 34 s of work / (30 s x 2 cores). A
    job that seems to begin before another's end takes no third core."""
    (tmp_path / "reports" / "demo").mkdir(parents=True)
    assert grid_overhead(tmp_path, 2.0).ratio is None
    (tmp_path / "reports" / "demo" / "report.html").touch()
    for name, seconds, end in (("a", 10, 1000), ("b", 10, 1000), ("c", 20, 1120)):
        path = tmp_path / "benchmarks" / "runs" / "toy" / "sums" / name / "train.tsv"
        path.parent.mkdir(parents=True)
        path.write_text(f"s\th:m:s\n{seconds}\t0:00:10\n")
        os.utime(path, (end, end))
    assert grid_overhead(tmp_path, 2.0).ratio == pytest.approx(1 - (8 + 8 + 18) / (30 * 2))
    path = tmp_path / "benchmarks" / "runs" / "toy" / "sums" / "d" / "train.tsv"
    path.parent.mkdir()
    path.write_text("s\th:m:s\n10\t0:00:10\n")
    os.utime(path, (1009.5, 1009.5))
    assert grid_overhead(tmp_path, 2.0).ratio == pytest.approx(1 - (8 + 8 + 8 + 18) / (39.5 * 2))


def test_driver_runs_a_measurement(tmp_path):
    pytest.importorskip("trl")
    command = [sys.executable, "-m", "benchmarks.run", "--tiny", "--threads", "1", "--only", "step_vs_trl"]
    made = subprocess.run(
        [*command, "--out", tmp_path], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300
    )
    assert made.returncode == 0, made.stdout + made.stderr
    found = json.loads((tmp_path / "peers.json").read_text())
    assert {"plan", "machine", "seconds", "rows"} <= found.keys()
    assert [row["case"] for row in found["rows"]] == ["S P=8 hard", "S P=8 soft", "S P=8 fuzzy"]
    for row in found["rows"]:
        assert row.keys() >= {
            "measurement",
            "ratio",
            "goal",
            "reached",
            "bound",
            "spread",
            "median",
            "repeats",
            "sides",
        }
        assert 0 < row["ratio"] < row["bound"], "nothing is ahead of its bound"
        for side in ("ours", "TRL"):
            assert row["sides"][side].keys() == {"wall_min", "wall_median", "wall_max", "cpu_min", "cpu_median"}
            assert 0 < row["sides"][side]["wall_min"] <= row["sides"][side]["wall_median"]
    assert "| S P=8 hard |" in (tmp_path / "peers.md").read_text()
