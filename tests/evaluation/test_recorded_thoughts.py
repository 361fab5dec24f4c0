"""Recorded thoughts are those of the recorded samples, whatever is resumed; recording changes no sample."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from softtok.config.settings import GenerationSettings, RuntimeSettings
from softtok.config.specs import EvaluationSpec
from softtok.evaluation import evaluate as module
from softtok.evaluation.evaluate import evaluate
from softtok.evaluation.thoughts import SAMPLES, SCHEMA
from softtok.method.batches import problems_hash
from softtok.method.draws import Draws
from softtok.method.stream import stream
from softtok.method.trajectories import Batch
from softtok.models.base_model import base_run
from softtok.problems.prompt import render
from softtok.storage.files import THOUGHTS_SUFFIX
from tests.support.specs import EVALUATION_MODES, TEMPLATE, base_spec, toy_model
from tests.support.specs import evaluation_spec as spec

SOFT = ("soft-sample", "fuzzy-greedy")


@pytest.fixture
def run(tmp_path: Path, tiny_toy: Path) -> Path:
    base_run(base_spec(toy_model()), tiny_toy, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that were generated."""
    batches: list[Batch] = []

    def noted(policy: Any, batch: Batch, room: Any) -> Any:
        batches.append(batch)
        return stream(policy, batch, room)

    monkeypatch.setattr(module, "stream", noted)
    return batches


def rows_of(frame: pd.DataFrame) -> list[SimpleNamespace]:
    return [SimpleNamespace(**{str(name): value for name, value in row.items()}) for row in frame.to_dict("records")]


def thoughts_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out.with_suffix(THOUGHTS_SUFFIX))


def evaluated(asked: EvaluationSpec, run: Path, data: Path, out: Path, **runtime: int) -> pd.DataFrame:
    evaluate(asked, RuntimeSettings.model_validate(runtime), run, data, out)
    return thoughts_of(out)


@pytest.mark.parametrize("mode", ["soft-sample", "fuzzy-greedy"])
def test_records_are_what_the_model_gives_step_by_step(
    mode: str, run: Path, toy_sets: dict[str, Path], tmp_path: Path, tiny_toy: Path
) -> None:
    """transformers' own forward, fed with mixtures and noise that are made here from the equations."""
    steps = evaluated(spec(mode), run, toy_sets["test"], tmp_path / "out.parquet")
    settings = EVALUATION_MODES[mode]
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_toy, dtype=torch.float32)
    embedding_VD = model.get_input_embeddings().weight.detach()
    rms, width = float(embedding_VD.square().mean().sqrt()), embedding_VD.shape[1]
    tokenizer = AutoTokenizer.from_pretrained(tiny_toy)
    questions = {row["id"]: row["question"] for row in pq.read_table(toy_sets["test"]).to_pylist()}
    salt = problems_hash(toy_sets["test"], ["id", "question"])[:16]
    for (name, sample), of_sample in steps.groupby(["problem_id", "sample"]):
        draws = Draws([f"evaluate|{salt}|0|{name}|{sample}"], "cot", "normal", width, torch.device("cpu"))
        embeds_TD = embedding_VD[tokenizer(render(TEMPLATE, questions[name]))["input_ids"]]
        for step in rows_of(of_sample):
            with torch.no_grad():
                logits_V = model(inputs_embeds=embeds_TD[None]).logits[0, -1].double()
            weights_V = torch.softmax(logits_V / settings.temperature, -1)
            drawn = draws.at(step.step, np.arange(1))
            assert drawn is not None
            noise_D = settings.noise_scale * rms * drawn[0]
            assert weights_V[list(step.ids)].tolist() == pytest.approx(list(step.weights), abs=1e-3)
            assert step.ids[0] == int(weights_V.argmax())
            assert sum(step.weights) == pytest.approx(float(weights_V.topk(5).values.sum()), abs=1e-3)
            assert step.tokens[0] == tokenizer.decode([step.ids[0]])
            assert step.moved == pytest.approx(float(noise_D.norm()) / (rms * math.sqrt(width)), abs=1e-4)
            entropy = float(torch.distributions.Categorical(logits=logits_V).entropy())
            assert step.entropy == pytest.approx(entropy, abs=1e-3)
            embeds_TD = torch.cat([embeds_TD, (weights_V.float() @ embedding_VD + noise_D)[None]])


@pytest.mark.parametrize("rows", [1, 5, 256])
def test_thoughts_are_those_of_the_samples_beside_them(
    rows: int, run: Path, toy_sets: dict[str, Path], tmp_path: Path
) -> None:
    modes = {name: mode.model_copy(update={"samples": 6}) for name, mode in EVALUATION_MODES.items() if name in SOFT}
    steps = evaluated(
        spec(modes=modes, thoughts=5), run, toy_sets["train"], tmp_path / "out.parquet", rollout_rows=rows
    )
    assert list(steps.columns) == SCHEMA.names
    samples = pd.read_parquet(tmp_path / "out.parquet").set_index(["inference_mode", "problem_id", "sample"])
    grouped = steps.groupby(["inference_mode", "problem_id", "sample"])
    assert len(grouped) == len(SOFT) * 5 * SAMPLES, "the first samples of five problems"
    wanted = samples[["cot", "cot_tokens"]].to_dict("index")
    for place, of_sample in grouped:
        assert "".join(of_sample.token) == wanted[place]["cot"]
        assert of_sample.step.tolist() == list(range(wanted[place]["cot_tokens"]))
    chosen = steps.groupby("inference_mode").problem_id.unique().map(set)
    assert chosen.iloc[0] == chosen.iloc[1], "the same problems in all modes"
    assert steps["sample"].max() == SAMPLES - 1


def test_recording_changes_no_sample_and_hard_modes_are_not_watched(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, tiny_toy: Path, asked: list[Batch]
) -> None:
    other = tmp_path / "other"
    base_run(base_spec(toy_model()), tiny_toy, other)
    steps = evaluated(spec(), run, toy_sets["train"], tmp_path / "a.parquet", rollout_rows=7)
    assert set(steps.inference_mode) == set(SOFT)
    assert [len(batch.watch.keys) for batch in asked] == [4, 16, 16, 4]
    none = evaluated(spec(thoughts=0), other, toy_sets["train"], tmp_path / "b.parquet", rollout_rows=7)
    assert none.empty
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), pd.read_parquet(tmp_path / "b.parquet"))
    profiles = [(tmp_path / name).read_text() for name in ("a.entropy.csv", "b.entropy.csv")]
    assert profiles[0] == profiles[1]


def test_more_thoughts_cost_only_the_problems_that_lack_them(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, tiny_toy: Path, asked: list[Batch]
) -> None:
    modes = ("hard-sample", *SOFT)
    evaluated(spec(*modes, thoughts=0), run, toy_sets["train"], tmp_path / "a.parquet")
    more = evaluated(spec(*modes, thoughts=3), run, toy_sets["train"], tmp_path / "b.parquet")
    assert [len(batch.prompts) for batch in asked] == [40, 40, 40, 0, 3, 3]
    other = tmp_path / "other"
    base_run(base_spec(toy_model()), tiny_toy, other)
    at_once = evaluated(spec(*modes, thoughts=3), other, toy_sets["train"], tmp_path / "c.parquet")
    pd.testing.assert_frame_equal(more, at_once, atol=1e-3)
    for name in ("a", "b"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / f"{name}.parquet"), pd.read_parquet(tmp_path / "c.parquet")
        )
    fewer = evaluated(spec(*modes, thoughts=1), run, toy_sets["train"], tmp_path / "d.parquet")
    assert sum(len(batch.prompts) for batch in asked[-3:]) == 0
    assert fewer.problem_id.nunique() == 1


def test_a_crash_costs_the_thoughts_of_one_problem(run: Path, toy_sets: dict[str, Path], tmp_path: Path) -> None:
    whole = evaluated(spec("soft-sample"), run, toy_sets["test"], tmp_path / "a.parquet")
    (shard,) = (run / ".state" / "shards").iterdir()
    lines = shard.read_bytes().split(b"\n")
    hit = next(place for place, line in enumerate(lines) if b'"thoughts"' in line and b'"problem_id"' in line)
    lines[hit] = lines[hit][:-30]
    shard.write_bytes(b"\n".join(lines))
    again = evaluated(spec("soft-sample"), run, toy_sets["test"], tmp_path / "b.parquet")
    pd.testing.assert_frame_equal(whole, again, atol=1e-3)


def test_the_usual_number_of_thoughts_leaves_specs_as_they_were() -> None:
    assert "thoughts" not in GenerationSettings().model_dump()
    assert GenerationSettings.model_validate(GenerationSettings(thoughts=0).model_dump()).thoughts == 0
