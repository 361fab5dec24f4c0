"""A small study of the pretrained model SmolLM2: its prompts, six inference modes, training, resume and checkpoint.

It has some hundred million multiplications for each token, so problems and thoughts are few and short.
"""

from __future__ import annotations

import ast
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from softtok.__main__ import main
from softtok.config.grid import Study
from softtok.config.jobs import Evaluation, Run
from softtok.config.manifests import CheckpointManifest, read
from softtok.evaluation.evaluate import evaluate
from softtok.method.batches import Problem, read_problems
from softtok.method.stream import Room
from softtok.method.token_modes import bind
from softtok.method.trajectories import Limits, Policy
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.problems.prompting import asking
from softtok.problems.reward import Judge
from softtok.storage.files import atomic
from softtok.storage.locks import EXIT_INTERRUPTED
from softtok.training.train import Trainer, train
from tests.support.pretrained import CPU, PROBLEMS, SIX, TRAINED, WITH_SMOLLM2, make_study, result_script
from tests.support.slow_jobs import slow_job, stop
from tests.support.training_runs import lines, of_machine, stopped_in_step

pytestmark = WITH_SMOLLM2


@pytest.fixture(scope="module")
def study(smollm2: tuple[Path, float], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """The small study, in the working folder."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield make_study(folder, smollm2[0])
    shutil.rmtree(folder)  # runs hold gigabytes


def run_of(study: Study, mode: str) -> Run:
    """Returns the run of a training mode."""
    return next(run for run in study.runs.values() if run.name == mode)


def evaluation_of(study: Study) -> Evaluation:
    """Returns the study's only evaluation."""
    ((evaluation,),) = {tuple(of_run.values()) for of_run in study.evaluations.values()}
    return evaluation


def problems_of(study: Study, lm: LanguageModel, checkpoint: Path) -> list[Problem]:
    """Returns the test problems, asked as a checkpoint asks."""
    evaluation = evaluation_of(study)
    asks = read(CheckpointManifest, checkpoint / "checkpoint.json").asks
    asked = asking(evaluation.spec.prompting, asks, evaluation.spec.grading.answer_format)
    return read_problems(Path(evaluation.data.path), lm, asked)


class Checked(NamedTuple):
    """The untouched model, softtok's and transformers' own, as docs/results/check_base.py holds them."""

    module: ModuleType
    sides: Any
    problems: list[Problem]


@pytest.fixture(scope="module")
def checked(study: Study) -> Checked:
    module, checkpoint = result_script("check_base"), Path(run_of(study, "base").folder) / "checkpoint"
    sides = module.Sides.of(checkpoint, evaluation_of(study).spec)
    return Checked(module, sides, problems_of(study, sides.lm, checkpoint))


def trainer_of(study: Study, mode: str) -> Trainer:
    """Returns a training of the study that saves nothing."""
    run = run_of(study, mode)
    assert run.train_set is not None
    return Trainer(run.spec, CPU, Path(run.model.folder), Path(run.train_set.path), Path(run.folder))


def test_prompts_are_previewed_with_their_ids(
    study: Study, smollm2: tuple[Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "cups", "--model", "smollm2"]) == 0
    shown = capsys.readouterr().out
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2[0])
    ids = [ast.literal_eval(line.split(" ids: ")[1]) for line in shown.splitlines() if " ids: [" in line]
    assert len(ids) == 3
    for text in map(tokenizer.decode, ids):
        assert text in shown
        assert text.startswith("Question: Ann has 2 pens") and text.endswith("How many cups does Tom have?\nAnswer:")
        assert r"Answer: 9 - 4 = 5. The final answer is: \boxed{5}." in text


def test_eight_problems_in_six_modes(study: Study) -> None:
    run, evaluation = run_of(study, "base"), evaluation_of(study)
    out = Path(run.folder) / f"{evaluation.stem}.parquet"
    evaluate(evaluation.spec, CPU, Path(run.folder), Path(evaluation.data.path), out)
    records = pd.read_parquet(out)
    counts = records.groupby("inference_mode").size()
    assert counts.to_dict() == {mode: PROBLEMS * (2 if mode.endswith("two") else 1) for mode in SIX}
    assert records.boxed.mean() > 0.9 and 0 < records.correct.mean() < 1
    assert set(records.stop) <= {"phrase", "eos", "cap"} and (records.stop == "phrase").mean() > 0.5
    thoughts = records.set_index(["inference_mode", "problem_id", "sample"]).cot
    assert thoughts["fuzzy-greedy"].equals(thoughts["hard-greedy"]), "there a mixture is the likeliest token's row"
    for mode in ("hard-two", "soft-two"):  # the noise of fuzzy tokens changes no text here
        assert thoughts[mode].nunique() > thoughts["hard-greedy"].nunique(), f"{mode} draws"
    profile = pd.read_csv(out.with_suffix(".entropy.csv")).set_index(["inference_mode", "index"])
    assert profile.entropy.between(0, 11).all() and set(profile.index.unique(0)) == set(SIX)


def test_greedy_thoughts_and_answers_are_those_of_generate(checked: Checked) -> None:
    module, sides, problems = checked
    compared = module.compare_greedy(sides, problems)
    assert compared.problems == PROBLEMS and compared.tokens > 10 * PROBLEMS
    assert not compared.beyond_rounding, "\n".join(module.greedy_table(compared))


def test_samples_are_compared_with_those_of_generate(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy thoughts in the place of samples are less surprising than the model's predictions allow."""
    module, sides, problems = checked.module, checked.sides, checked.problems[:3]
    drawn = [side(sides, problems, 2) for side in (module.our_samples, module.their_samples)]
    monkeypatch.setattr(module, "SAMPLE", module.GREEDY)
    with Judge(grading=sides.spec.grading) as judge:
        ours, theirs, greedy = (
            module.outcomes(sides, judge, problems, samples)
            for samples in (*drawn, module.our_samples(sides, problems, 2))
        )
    for found in (ours, theirs, greedy):
        assert all(values.shape == (3,) for values in found.values())
        assert ((found["tokens of a thought"] >= 1) & (found["tokens of a thought"] <= 16)).all()
    surprise = next(name for name in ours if name.startswith("surprise"))
    assert (greedy[surprise] < -1).all() and abs(ours[surprise].mean()) < 6 > abs(theirs[surprise].mean())
    assert len(list(module.sampled_table(ours, theirs))) == 2 + len(ours)


def test_ways_of_evaluation_are_measured_on_the_same_thoughts(checked: Checked) -> None:
    module, sides = result_script("evaluation_speed"), checked.sides
    policy = Policy(sides.lm, sides.rules, bind(module.SAMPLE, {}), Limits(16, 4, 0.0, "phrase"))
    (cost, thoughts), *others = (
        module.sample(policy, checked.problems[:3], 2, Room(2, 10_000), removed)
        for removed in (None, "refilling", "beginning")
    )
    assert set(thoughts) == {(b, g) for b in range(3) for g in range(2)}
    fed = sum(len(thought) for thought in thoughts.values())  # two rows side by side
    assert cost.decode_steps >= fed / 2
    for _, without in others:
        assert set(without) == set(thoughts)
        assert sum(thoughts[key] == thought for key, thought in without.items()) >= 5, "but for near-ties"
    assert others[0][0].decode_steps != cost.decode_steps, "rows of different lengths end in other steps"


@pytest.mark.parametrize("mode", TRAINED)
def test_two_steps_move_the_weights(study: Study, mode: str) -> None:
    """By no more than the learning rate for each step, and the pass sees what the rollout saw."""
    trainer = trainer_of(study, mode)
    before = {name: weight.detach().clone() for name, weight in trainer.lm.model.named_parameters()}
    with trainer.judge:
        first, second = trainer.take_step(1), trainer.take_step(2)
    for line in (first, second):
        assert line["boxed"] is not None and line["boxed"] > 50
        assert line["gradient_norm"] is not None and line["gradient_norm"] >= 0
        assert line.get("recomputation_gap", 0.0) < 1e-2
        assert line.get("shadow_flips", 0.0) < 0.02
    assert max(line["gradient_norm"] or 0.0 for line in (first, second)) > 0
    moved = {
        name: float((weight.detach() - before[name]).abs().max())
        for name, weight in trainer.lm.model.named_parameters()
    }
    moving = (first, second) if first["gradient_norm"] else (second,)  # a step without a signal moves nothing
    most = sum(line["learning_rate"] or 0.0 for line in moving)
    assert all(0.5 * most < largest < 1.1 * most for largest in moved.values()), moved


def test_a_signal_ends_a_training_in_the_middle_of_a_step_and_keeps_the_last_one(study: Study, tmp_path: Path) -> None:
    """At its real speed, within 10 seconds and the time that the disk takes for the 1.6 GB that it saves."""
    run, out = run_of(study, "hard"), tmp_path / "run"
    assert run.train_set is not None and run.spec.training is not None
    training = run.spec.training.model_copy(update={"samples_per_prompt": 16, "max_cot_tokens": 24})
    spec = run.spec.model_copy(update={"training": training}).as_json()
    options = {"spec": spec, "runtime": CPU.model_dump_json(), "model": run.model.folder, "data": run.train_set.path}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with slow_job(["train", *words, "--out", str(out)], "roll_out", 1, before=4, seconds=0) as job:
        took, printed = stop(job, signal.SIGTERM)
    assert job.returncode == EXIT_INTERRUPTED, printed
    saved = out / ".state" / "progress.pt"
    assert torch.load(saved)["step"] == 1
    begun = time.monotonic()
    with atomic(tmp_path / "again") as again:
        shutil.copyfile(saved, again)
    assert took - (time.monotonic() - begun) < 10
    (tmp_path / "again").unlink()
    shutil.rmtree(out)


def test_a_training_resumes_and_its_checkpoint_is_transformers(study: Study) -> None:
    run = run_of(study, "soft")
    assert run.train_set is not None
    out, data, model = Path(run.folder), Path(run.train_set.path), Path(run.model.folder)
    with stopped_in_step(1):
        train(run.spec, CPU, model, data, out)
    train(run.spec, CPU, model, data, out)
    trainer = trainer_of(study, "soft")
    with trainer.judge:
        wanted = [trainer.take_step(step) for step in (1, 2)]
    for line, expected in zip(lines(out)[1:], wanted, strict=True):
        seen = {name: line[name] for name in expected if not of_machine(name)}
        assert seen == pytest.approx({name: expected[name] for name in seen}, rel=1e-3)
    saved, checkpoint = trainer.lm.model.state_dict(), out / "checkpoint"
    theirs: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    assert all(torch.allclose(weight, saved[name], atol=1e-6) for name, weight in theirs.state_dict().items())
    lm, module = load(checkpoint, CPU), result_script("check_base")
    rules = module.TextRules(lm)
    sides = module.Sides(lm, rules, theirs.eval(), evaluation_of(study).spec)
    compared = module.compare_greedy(sides, problems_of(study, lm, checkpoint))
    assert compared.tokens > 10 * PROBLEMS
    assert not compared.beyond_rounding, "\n".join(module.greedy_table(compared))
