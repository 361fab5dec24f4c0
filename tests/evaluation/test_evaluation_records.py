"""An evaluation's records are of what was judged; its answers are greedy, its randomness keyed, its shards its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softtok.config.manifests import CheckpointManifest
from softtok.config.settings import RuntimeSettings
from softtok.evaluation import evaluate as module
from softtok.evaluation.choices import choices
from softtok.evaluation.evaluate import Cells, evaluate, noise_rms
from softtok.method.batches import Problem, read_problems
from softtok.method.stream import Finished, Room, stream
from softtok.method.trajectories import Batch, Policy, Rollout
from softtok.models.base_model import base_run
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.problems.reward import Grading, Judge
from softtok.storage.costs import read_cost
from softtok.storage.files import read_manifest, write_manifest
from tests.support.specs import EVALUATION_MODES, base_spec, choices_spec, toy_model
from tests.support.specs import evaluation_spec as spec
from tests.support.tiny_models import tiny_model


@pytest.fixture
def run(tmp_path: Path, tiny_toy: Path) -> Path:
    base_run(base_spec(toy_model()), tiny_toy, tmp_path / "run")
    return tmp_path / "run"


def test_each_answer_judged_again_by_its_own_problems_gold_gives_its_record(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    evaluate(spec(*EVALUATION_MODES), RuntimeSettings(), run, toy_sets["train"], out)  # 40 problems of many lengths
    table = pd.read_parquet(out)
    golds = {problem["id"]: problem["gold"] for problem in pq.read_table(toy_sets["train"]).to_pylist()}
    with Judge() as judge:
        verdicts = judge.grade([(text, golds[name]) for text, name in zip(table.answer, table.problem_id, strict=True)])
    assert table.status.tolist() == [verdict.status for verdict in verdicts]
    assert table.correct.tolist() == [verdict.correct for verdict in verdicts]
    assert table.boxed.tolist() == [verdict.boxed is not None for verdict in verdicts]
    assert 0 < table.correct.mean() < 1
    answers = table[table.inference_mode == "hard-sample"].groupby("problem_id").answer
    assert answers.nunique().max() > 1, "a problem's samples are not one answer written down four times"


@pytest.mark.parametrize("reward", ["math", "math-strict", "exact"])
def test_where_math_and_math_strict_differ_both_verdicts_are_recorded(
    reward: str, run: Path, toy_sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`7 keys` is no 7 to Math-Verify; the other verdict is a column of its own, and changes no other."""

    def counting_keys(*arguments: Any, **options: Any) -> list[Problem]:
        return [replace(p, golds=[f"{p.golds[0]} keys"]) for p in read_problems(*arguments, **options)]

    monkeypatch.setattr(module, "read_problems", counting_keys)
    settings = spec("hard-sample").model_copy(update={"grading": Grading.model_validate({"reward": reward})})
    evaluate(settings, RuntimeSettings(), run, toy_sets["train"], tmp_path / "out.parquet")
    table = pd.read_parquet(tmp_path / "out.parquet")
    differing = table[table.other_status != ""]
    if reward == "exact":
        assert differing.empty
        return
    golds = {problem["id"]: problem["gold"] for problem in pq.read_table(toy_sets["train"]).to_pylist()}
    with Judge() as judge:
        verdicts = judge.grade([(text, golds[name]) for text, name in zip(table.answer, table.problem_id, strict=True)])
    right = [verdict.correct for verdict in verdicts]
    assert any(right)
    assert table.correct.tolist() == (right if reward == "math-strict" else [False] * len(table))
    assert (table.other_status != "").tolist() == right
    assert (set(differing.other_status) <= {"correct"}) == (reward == "math")


def test_each_row_says_what_it_was_made_on_also_after_a_move(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that goes on on another device is of both."""
    out, test_set = tmp_path / "out.parquet", toy_sets["test"]
    monkeypatch.setattr(module, "announce", lambda *place: "one device, bf16")
    monkeypatch.setattr(module, "_write", lambda shards, out: None)
    evaluate(spec("hard-greedy"), RuntimeSettings(), run, test_set, out)
    monkeypatch.undo()
    evaluate(spec("hard-greedy", "soft-sample"), RuntimeSettings(), run, test_set, out)
    table = pd.read_parquet(out)
    assert set(table[table.inference_mode == "hard-greedy"].made_on) == {"one device, bf16"}
    (here,) = set(table[table.inference_mode == "soft-sample"].made_on)
    assert here.startswith("cpu") and here.endswith(", fp32")


def test_answers_are_greedy_and_end_as_the_settings_say(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, rollouts: list[SimpleNamespace]
) -> None:
    settings = spec("hard-sample", "soft-sample", stop_on="nearest")
    evaluate(settings, RuntimeSettings(), run, toy_sets["test"], tmp_path / "out.parquet")
    assert len(rollouts) == 2
    for asked in rollouts:
        limits = asked.limits
        assert (limits.answer_temperature, limits.stop_on) == (0.0, "nearest")
        assert (limits.max_cot_tokens, limits.max_answer_tokens) == (16, 4)


def test_the_entropy_profile_is_a_mean_over_those_still_thinking(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, rollouts: list[SimpleNamespace]
) -> None:
    evaluate(spec("hard-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "out.parquet")
    profile = pd.read_csv(tmp_path / "out.entropy.csv")
    assert (profile.entropy == 2.0).all()
    assert profile["count"].nunique() > 1, "fewer and fewer are still thinking"


def test_no_two_samples_of_an_evaluation_draw_the_same_noise(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, rollouts: list[SimpleNamespace]
) -> None:
    """Over problems, samples and the seeds of the runs."""
    checkpoint = run / "checkpoint" / "checkpoint.json"
    for seed in (0, 1):
        write_manifest(checkpoint, read_manifest(checkpoint) | {"seed": seed})
        evaluate(spec("hard-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "out.parquet")
    keys = [key for asked in rollouts for key in asked.keys]
    assert len(set(keys)) == len(keys) == 2 * 6 * 4


def test_a_shard_belongs_to_its_data_mode_samples_and_version(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, rollouts: list[SimpleNamespace]
) -> None:
    """Each of them changed, nothing of the shard is used; changed back, all of it is."""
    data, out, runtime = tmp_path / "test.parquet", tmp_path / "out.parquet", RuntimeSettings()
    shutil.copy(toy_sets["test"], data)
    settings, mode = spec("hard-sample"), EVALUATION_MODES["hard-sample"]

    def rows_made(version: int = 1, **changed: Any) -> int:
        rollouts.clear()
        modes = {"hard-sample": mode.model_copy(update=changed)}
        evaluate(settings.model_copy(update={"inference_modes": modes, "version": version}), runtime, run, data, out)
        return sum(len(asked.keys) for asked in rollouts)

    assert rows_made() == 24
    assert rows_made(temperature=0.5) == 24
    assert rows_made(samples=6) == 36
    assert rows_made(version=2) == 24
    assert rows_made() == 0
    replace_golds(data, ["-1"])
    assert rows_made() == 24
    assert not pd.read_parquet(out).correct.any()


def replace_golds(data: Path, gold: list[str]) -> None:
    """Gives all problems of a prepared set other golds, and leaves their ids and its path as they are."""
    rows = [problem | {"gold": gold} for problem in pq.read_table(data).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(data)), data)


def test_noise_of_a_trained_model_is_measured_in_units_of_its_base() -> None:
    lm = tiny_model()
    base = CheckpointManifest(reference=None, sha256="", embedding_rms=None, state_rms={}, prompt="", seed=0)
    assert noise_rms(lm, base.model_copy(update={"embedding_rms": 7.0}), [], [])["embedding"] == 7.0
    rms = noise_rms(lm, base, [], [])
    assert rms["embedding"] == pytest.approx(lm.embedding_VD.square().mean().sqrt().item())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stands in for the time that passes: 7 seconds to load a model, and a second for each finished problem."""
    now = [0.0]

    def loading(*arguments: Any) -> LanguageModel:
        now[0] += 7
        return load(*arguments)

    def generating(policy: Policy, batch: Batch, room: Room) -> Iterator[Finished]:
        for finished in stream(policy, batch, room):
            now[0] += len(finished)
            yield finished

    monkeypatch.setattr(module, "load", loading)
    monkeypatch.setattr(module, "stream", generating)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_cost_beside_the_rows_is_that_of_all_attempts(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt ends while it judges a further problem, whose time is lost with it."""
    out, settings = tmp_path / "out.parquet", RuntimeSettings(rollout_rows=4)
    verdicts, judged = Cells._verdicts, []

    def fails(self: Cells, policy: Policy, problems: list[Problem], made: list[Rollout]) -> Any:
        judged.extend(problems)
        if len(judged) > 3:
            raise RuntimeError("killed")
        return verdicts(self, policy, problems, made)

    with monkeypatch.context() as patch:
        patch.setattr(Cells, "_verdicts", fails)
        patch.setattr(module, "announce", lambda *place: "one device, bf16")
        with pytest.raises(RuntimeError, match="killed"):
            evaluate(spec("hard-sample", "soft-sample"), settings, run, toy_sets["test"], out)
    assert not out.exists()
    evaluate(spec("hard-sample", "soft-sample"), settings, run, toy_sets["test"], out)
    cost, table = read_cost(out), pd.read_parquet(out)
    assert cost is not None
    assert (cost.ready_s, cost.made_on) == (7.0, table.made_on.iloc[-1])
    first, rest, soft = cost.parts
    assert [part.made_on for part in cost.parts] == ["one device, bf16", cost.made_on, cost.made_on]
    assert (first.wall_s, rest.wall_s, soft.wall_s) == (3.0, 3.0, 6.0)
    for part in cost.parts:
        rows = table[(table.inference_mode == part.inference_mode) & (table.made_on == part.made_on)]
        assert part.tokens == rows.cot_tokens.sum() + rows.answer_tokens.sum() > 0
        assert part.tokens_per_s == part.tokens / (part.wall_s or 0)
        assert part.peak_memory_mb is not None and part.peak_memory_mb > 100


def test_a_choice_set_notes_its_cost(run: Path, toy_sets: dict[str, Path], tmp_path: Path) -> None:
    start = time.monotonic()
    choices(choices_spec("letters"), RuntimeSettings(), run, toy_sets["choice"], tmp_path / "out.parquet")
    took, cost = time.monotonic() - start, read_cost(tmp_path / "out.parquet")
    assert cost is not None
    (part,) = cost.parts
    assert 0 < cost.ready_s < took and part.wall_s is not None and 0 < cost.ready_s + part.wall_s <= took
    assert (part.made_on, part.tokens) == (cost.made_on, 0)
