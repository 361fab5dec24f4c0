"""The benchmarks' arithmetic and statistics: counted operations are PyTorch's, the work is the same on all sides."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, addmm_flop

from benchmarks import bounds, cells, measurements, work
from benchmarks.driver import Rounds, Side, interleave
from benchmarks.overhead import grid_overhead
from benchmarks.plans import REAL_LONG, REAL_SHORT
from benchmarks.toy import expand
from benchmarks.work import (
    LARGE_ROWS,
    SIZES,
    Ours,
    clocks,
    make_generate,
    make_prompts,
    make_trl,
    random_llama,
    timed_backward,
)
from softtok.config import flops
from softtok.config.flops import Load, Size

SIZE = Size(width=32, layers=2, heads=4, key_heads=2, mlp_width=48, vocabulary=96)
LOAD = Load(prompt=8, new_tokens=6, prompts=3, samples=4)


@pytest.fixture(scope="module")
def ours() -> Ours:
    made = Ours(SIZE, LOAD)
    made.lm.model.set_attn_implementation("eager")  # its products are counted, where a fused kernel's are not
    return made


def counted(once: Callable[[], object]) -> int:
    unknown = {  # to PyTorch's counter: the product that adds to a sum in place, and oneDNN's
        torch.ops.aten.addmm_: lambda total, a, b, **_: addmm_flop(total, a, b),
        torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0],
    }
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        once()
    return int(counter.get_total_flops())


def test_products_are_counted_as_pytorch_counts_them(ours: Ours) -> None:
    assert counted(ours.decode_products) == bounds.decode_product_flops(SIZE, LOAD)
    assert counted(ours.large_products) == bounds.large_product_flops(SIZE, LARGE_ROWS)
    assert counted(ours.mixture_products) == flops.mixture_flops(SIZE, LOAD, "soft")
    assert flops.mixture_flops(SIZE, LOAD, "fuzzy") == 0
    assert counted(ours.prefill) == flops.prefill_flops(SIZE, LOAD)


def test_a_rollout_does_the_counted_arithmetic() -> None:
    """A bound above what the code does would be no bound, and one below it would say little."""
    ours = Ours(SIZE, LOAD)
    fused = flops.attention_flops(SIZE, LOAD.prompts * LOAD.prompt**2)  # the prompts', which PyTorch does not see
    for mode in ("hard", "soft", "fuzzy"):
        decode = flops.decode_flops(SIZE, LOAD) + flops.mixture_flops(SIZE, LOAD, mode)
        least = decode + flops.prefill_flops(SIZE, LOAD) - fused
        assert 1 <= counted(partial(ours.rollout, mode)) / least < 1.003, mode


def test_generate_and_trl_do_the_counted_arithmetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What arithmetic allows is their operations over ours."""

    def eager(size: Size) -> Any:
        model = random_llama(size)
        model.set_attn_implementation("eager")
        return model

    monkeypatch.setattr(work, "random_llama", eager)
    once, _ = make_generate(SIZE, LOAD)
    generated = counted(once)
    assert 1 <= generated / bounds.generate_flops(SIZE, LOAD) < 1.003
    least = flops.prefill_flops(SIZE, LOAD) + flops.decode_flops(SIZE, LOAD)
    assert bounds.rollout_advantage(SIZE, LOAD) == pytest.approx(generated / least, rel=0.003)
    pytest.importorskip("trl")
    trainer, _ = make_trl(SIZE, LOAD, str(tmp_path), steps=1)
    assert 1 <= counted(trainer.train) / bounds.trl_flops(SIZE, LOAD) < 1.003


def test_goals_of_long_thoughts_are_shares_of_what_arithmetic_allows() -> None:
    """At the pretrained model's size; of short thoughts they are numbers."""
    none = Rounds({}, True)
    short, long = (cells.Cell("R", SIZES["R"], load, none, none, none, 0, 0) for load in (REAL_SHORT, REAL_LONG))
    assert (short.case, long.case) == ("R P=170 T=24", "R P=170 T=128")
    assert bounds.rollout_advantage(long.size, long.load) == pytest.approx(1.97, abs=0.01)
    assert cells.rollout_goal(long) == 0.75 * bounds.rollout_advantage(long.size, long.load)
    assert [cells.step_goal(short, mode) for mode in work.MODES] == [4.0, 3.0, 3.0]
    ours = [cells.step_goal(long, mode) or 0.0 for mode in work.MODES]
    assert ours[2] > 1.5 and ours[1] < ours[0] < ours[2] < 0.75 * 4
    other = cells.Cell("L", SIZES["L"], Load(64), none, none, none, 0, 0)
    assert (cells.rollout_goal(other), cells.step_goal(other, "hard"), other.case) == (1.5, 2.2, "L P=64")


def test_a_pass_does_the_counted_arithmetic(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "reward", lambda ids: float(sum(ids)))  # no two alike: rows without advantage are not run
    ours.lm.model.set_attn_implementation("softtok_grouped")
    out = {mode: ours.rollout(mode) for mode in ("hard", "soft", "fuzzy")}
    ours.lm.model.set_attn_implementation("eager")
    for mode, made in out.items():
        seen = counted(partial(ours.update, mode, made))
        assert 1 <= seen / flops.pass_flops(SIZE, LOAD, mode) < 1.003, mode


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_a_pathwise_pass_does_no_more_than_its_share(
    tied: bool, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where the clock is not asked: its backward part is at most 1 + 0.7 (K + 1) of the score's.

    An iteration goes back through the body and does three products with the vocabulary.
    """
    monkeypatch.setattr(work, "reward", lambda ids: float(sum(ids)))  # no two alike
    size, load = replace(SIZES["S"], tied=tied), Load(prompt=8, new_tokens=6, prompts=1, samples=4)
    ours = Ours(size, load)
    out = ours.rollout("soft")
    ours.lm.model.set_attn_implementation("eager")
    score = counted(partial(ours.update, "soft", out))
    fed, thinking = load.rows * load.new_tokens, load.rows * (load.new_tokens - 1)
    body = fed * flops.body_flops(size)
    attention = flops.attention_flops(size, fed * (load.prompt + load.new_tokens))
    head = flops.head_flops(size)
    forward = flops.prefill_flops(size, load) + body + attention + (2 * thinking + load.rows) * head
    ours.estimate("pathwise", iterations)
    seen = counted(partial(ours.update, "soft", out)) - forward
    assert seen <= (1 + 0.7 * (iterations + 1)) * (score - forward)
    back = body + 2 * attention  # to x alone; both factors of attention's products depend on it
    least = score - forward + back + iterations * (back + 3 * thinking * head)
    assert 0.99 < seen / least < 1.01


def test_backward_passes_are_timed_and_change_nothing(ours: Ours) -> None:
    ours.lm.model.set_attn_implementation("softtok_grouped")
    out = ours.rollout("soft")
    ours.update("soft", out)
    wanted = [gradient.clone() for gradient in ours.optimizer.gradients.values()]
    started, backward = clocks(), torch.autograd.backward
    with timed_backward() as took:
        ours.update("soft", out)
    assert 0 < took[0] < (clocks() - started)[0]
    assert torch.autograd.backward is backward
    assert any(gradient.any() for gradient in wanted)
    assert all(torch.equal(a, b) for a, b in zip(ours.optimizer.gradients.values(), wanted, strict=True))


@pytest.mark.parametrize(("iterations", "seconds", "part", "reached"), [(0, 9, 7 / 3, False), (2, 9, 7 / 3, True)])
def test_a_pathwise_pass_is_held_to_its_share_of_the_scores_backward(
    iterations: int, seconds: float, part: float, reached: bool
) -> None:
    """The score's fastest pass takes 5 s, 3 of them backward: of 9 s of a pathwise pass 7 are not its forward part."""
    turns = [{"pass_wall_s": s, "pass_cpu_s": s, "backward_wall_s": s - 2.0, "mb": 10.0} for s in (8.0, 5.0)]
    ours = [{"pass_wall_s": s, "pass_cpu_s": s, "mb": 11.0} for s in (seconds, 2 * seconds)]
    rounds = Rounds({"score": turns, f"K={iterations}": ours}, True)
    time, memory = measurements.pathwise_rows(rounds, "case", iterations)
    assert time.ratio == pytest.approx(seconds / 5) and time.goal is not None
    assert time.goal * 5 == pytest.approx(2 + (1 + 0.7 * (iterations + 1)) * 3)
    assert time.reached is reached and f"backward part {part:.2f} of the score's" in time.note
    assert memory.ratio == pytest.approx(1.1) and memory.reached is True


def test_sizes_have_the_parameters_they_are_named_for() -> None:
    parameters = sum(p.numel() for p in random_llama(SIZE).parameters())
    norms = (2 * SIZE.layers + 1) * SIZE.width
    assert parameters - norms == (flops.body_flops(SIZE) + flops.head_flops(SIZE)) // 2


def test_every_row_samples_exactly_the_tokens(ours: Ours) -> None:
    ours.lm.model.set_attn_implementation("softtok_grouped")
    out = ours.rollout("hard")
    assert (out.cot_lengths == LOAD.new_tokens - 1).all()
    assert {len(answer) for answer in out.answers} == {1}
    assert [len(prompt) for prompt in make_prompts(SIZE, LOAD)] == [8, 6, 4]


def test_rounds_are_interleaved_and_the_first_is_forgotten() -> None:
    calls: list[str] = []

    def contestant(name: str, seconds: float) -> Callable[[], dict[str, float]]:
        def turn() -> dict[str, float]:
            calls.append(name)
            return {"wall_s": seconds, "cpu_s": seconds}

        return turn

    rounds = interleave({"a": contestant("a", 2.0), "b": contestant("b", 1.0)}, seconds=60, most=3)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert rounds.repeats == 3
    row = rounds.row("m", "case", Side("A", "a"), Side("B", "b"), goal=1.5)
    assert (row.ratio, row.reached) == (2.0, True)
    short = interleave({"a": contestant("a", 1.0)}, seconds=-1)
    assert short.warm_up and short.repeats == 2, "two rounds count even where time is up"
    warm = interleave({"a": contestant("a", 1.0)}, seconds=-1, warm=True)
    assert warm.warm_up and warm.repeats == 2
    assert interleave({"a": contestant("a", 1.0)}, seconds=60, most=3, warm=True).repeats == 3


def test_ratio_is_of_the_minima() -> None:
    turns = {"a": [{"wall_s": w, "cpu_s": w} for w in (3.0, 9.0)], "b": [{"wall_s": w, "cpu_s": w} for w in (2.0, 1.0)]}
    row = Rounds(turns, True).row("m", "case", Side("A", "a"), Side("B", "b"), goal=4, better="less")
    assert (row.ratio, row.median, row.spread, row.reached) == (3.0, 4.0, (1.5, 9.0), True)


def test_overhead_of_a_finished_grid(tmp_path: Path) -> None:
    """Two jobs of 10 s run side by side, then nothing, then one of 20 s: 1 - 34 s of work / (30 s x 2 cores).

    A job that seems to begin before another's end takes no third core.
    """
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


def test_a_row_takes_the_named_part_of_each_turn() -> None:
    turns = {
        "through": [{"wall_s": 6.0, "cpu_s": 6.0, "mb": 30.0}],
        "step": [{"wall_s": 9.0, "cpu_s": 9.0, "pass_wall_s": 2.0, "pass_cpu_s": 1.0, "mb": 10.0}],
    }
    rounds = Rounds(turns, True)
    row = rounds.row("m", "case", Side("through time", "through"), Side("pass", "step", "pass_"))
    assert row.ratio == 3.0
    assert {label: times.cpu_min for label, times in row.sides.items()} == {"through time": 6.0, "pass": 1.0}
    memory = rounds.memory_row("m", "case", "through", "step")
    assert (memory.ratio, memory.note) == (3.0, "30 MB over 10 MB")


def test_study_of_many_runs_has_them() -> None:
    """The dry run that is timed is of a study with as many trained runs as its row says, each evaluated."""
    grid = expand(problems=2, steps=0, runs=7)
    assert sum(run.train_set is not None for run in grid.runs.values()) == 7
    assert len(grid.studies["cell"].evaluation_files(".parquet")) == 8
