"""`softtok estimators` tells what stored gradients give, at the policy and the prompts that it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from softtok.__main__ import main
from softtok.config.jobs import DATA, MODEL, RUN
from softtok.config.manifests import RunManifest, read, write
from softtok.config.settings import RuntimeSettings, TokenMode
from softtok.config.specs import RunSpec
from softtok.method.batches import Problem
from softtok.method.stopping import TextRules
from softtok.method.terms import Experience
from softtok.method.trajectories import STOPS, Rollout
from softtok.models.base_model import base_run
from softtok.storage.files import text_hash
from softtok.training import estimators
from softtok.training.estimators import Bench, BlockSums, Estimator, Request, measure, trained
from softtok.training.train import Trainer, train
from tests.support.specs import HARD, base_spec, toy_model, train_spec
from tests.support.training_runs import weights

RUNTIME = RuntimeSettings(micro_batch_tokens=600, tile_tokens=64)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Path:
    """A results folder with a toy, its train set, and a run, as the workflow lays it out."""
    root, spec = tmp_path_factory.mktemp("project"), train_spec()
    assert spec.train_set is not None
    data = root / f"{DATA.format(kind='train', name='sums', spec=text_hash(spec.train_set.as_json()))}.parquet"
    data.parent.mkdir(parents=True)
    shutil.copy(toy_sets["train"], data)
    model = root / MODEL.format(model="toy", spec=text_hash(spec.model.as_json()))
    shutil.copytree(tiny_toy, model)
    train(spec, RuntimeSettings(), model, data, run_of(root, spec))
    return root


@pytest.fixture(scope="module")
def run(results: Path) -> Path:
    """The folder of the run."""
    return run_of(results, train_spec())


def run_of(root: Path, spec: RunSpec) -> Path:
    """Returns the folder of a run in a results folder."""
    return root / RUN.format(model="toy", train_set="sums", mode="soft", seed=0, spec=text_hash(spec.as_json()))


def request(run: Path, rollouts: int = 8, cot_tokens: int = 4, *, base: bool = False, seed: int = 0) -> Request:
    """Returns what to measure."""
    return Request(run, base, None, rollouts, cot_tokens, seed)


def bench(asked: Request) -> Bench:
    """Returns the policy at which to measure."""
    return Bench(asked, trained(asked.run), RUNTIME)


def with_signal(at: Bench) -> Experience:
    """Returns a rollout some of whose rewards differ."""
    return next(drawn for drawn in map(at.draw, range(50)) if drawn.advantages_N.any())


class Stored(BlockSums):
    """Sums that keep every gradient too."""

    made: ClassVar[list[Stored]] = []

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.gradients: list[torch.Tensor] = []
        self.made.append(self)

    def add(self, gradient_P: torch.Tensor, *given: Any) -> None:
        """Adds a gradient and keeps it."""
        self.gradients.append(gradient_P.double())
        super().add(gradient_P, *given)


def test_numbers_are_those_of_stored_gradients(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "BlockSums", Stored)
    monkeypatch.setattr(estimators, "CHUNK", 1000)
    Stored.made.clear()
    told = measure(request(run, 13, 3), RUNTIME)
    reference_nP, *others = (torch.stack(sums.gradients).numpy() for sums in Stored.made)
    assert len(reference_nP) == 6
    exact_nP = others[3]  # two products for three tokens
    assert not any(np.allclose(one_P, other_P) for one_P in reference_nP for other_P in exact_nP), (
        "halves share nothing"
    )
    n, r = len(reference_nP), reference_nP.mean(0)
    r_square = (r @ r - (reference_nP**2).sum() / n**2) * n / (n - 1)
    assert told["reference"]["norm"] == pytest.approx(np.sqrt(r_square), rel=1e-4)
    for made, gradients_nP in zip(told["estimators"], others, strict=True):
        assert len(gradients_nP) == 7
        n, mean = len(gradients_nP), gradients_nP.mean(0)
        variance = gradients_nP.var(0, ddof=1).sum()
        bias_square = ((mean - r) ** 2).sum() - variance / n - reference_nP.var(0, ddof=1).sum() / len(reference_nP)
        assert made["norm"] == pytest.approx(np.linalg.norm(gradients_nP, axis=1).mean(), rel=1e-4)
        assert made["variance"][0] == pytest.approx(variance / r_square, rel=1e-3)
        assert made["bias_square"][0] == pytest.approx(bias_square / r_square, rel=1e-3, abs=1e-3)
        assert made["tails"]["norm"][-1] == pytest.approx(np.linalg.norm(gradients_nP, axis=1).max(), rel=1e-4)


def test_each_estimator_is_the_training_with_its_settings(run: Path, results: Path) -> None:
    """The score's is that of `softtok train` on the same rollout; the answer's is its part."""
    asked = request(run)
    at, spec = bench(asked), trained(run).spec
    experience = with_signal(at)
    model, data = estimators.found(asked._replace(base=True), spec)
    trainer = Trainer(spec, RUNTIME, model, data, results / "scratch")
    trainer.lm.model.load_state_dict(at.lm.model.state_dict())
    whole: dict[str, torch.Tensor] = {}
    for name, terms in (("score", ("cot", "answer")), ("answer only", ("answer",))):
        trainer.accumulate(experience, terms)
        wanted = torch.cat([gradient.flatten() for gradient in trainer.optimizer.gradients.values()])
        whole[name] = at.gradient(experience, estimators.ESTIMATORS[name])[0]
        assert torch.allclose(whole[name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.norm()))
    assert (whole["score"] - whole["answer only"]).norm() > 0.1 * whole["answer only"].norm()
    trainer.judge.close()
    at.judge.close()


def test_a_short_chain_is_exact_after_as_many_products(run: Path) -> None:
    at = bench(request(run, cot_tokens=2))
    experience = with_signal(at)
    zeroth, first, second = (at.gradient(experience, Estimator("pathwise", k)) for k in (0, 1, 2))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(zeroth[0], first[0])
    assert torch.cat(first[1].adjoint_rows)[:, 1].max() < 1e-6
    assert torch.cat(zeroth[1].adjoint_rows)[:, 1].max() > 1e-4
    assert (torch.cat(zeroth[1].adjoint_rows)[:, 0] == 1).all()
    at.judge.close()


def test_every_cot_has_the_length_asked_for(run: Path) -> None:
    at = bench(request(run, cot_tokens=30))
    out = at.draw(0).rollout
    assert (out.cot_lengths == 30).all()
    assert (out.stops == STOPS.index("cap")).all(), "a phrase at the cap would change the prefilled words"
    plain, ends = TextRules(at.lm), range(1, 31)
    stopped = [row for row, ids in enumerate(out.cot_ids) if any(plain.stop(ids[:end]) for end in ends)]
    assert stopped, "a stop rule would have ended some"
    at.judge.close()


def test_prompts_and_noise_are_those_of_the_first_step(
    run: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], float]] = []

    def noted(self: Trainer, step: int, problems: list[Problem]) -> Rollout:
        seen.append(([problem.id for problem in problems], self.policy.tokens.noise_std))
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "roll_out", noted)
    model, data = estimators.found(request(run, base=True), trained(run).spec)
    with pytest.raises(KeyboardInterrupt):
        train(trained(run).spec, RUNTIME, model, data, tmp_path / "run")
    for base in (False, True):
        at = bench(request(run, base=base))
        assert ([problem.id for problem in at.problems], at.policy.tokens.noise_std) == seen[0]
        folder = model if base else run / "checkpoint"
        assert torch.equal(at.lm.embedding_VD, weights(folder)["model.embed_tokens.weight"])
        at.judge.close()


@pytest.mark.thorough
def test_exact_gradients_have_no_bias_and_the_seed_decides(run: Path) -> None:
    told = measure(request(run, 32, cot_tokens=3), RUNTIME)
    made = {of["name"]: of for of in told["estimators"]}
    exact, score = made["pathwise K=2"], made["score"]
    for unbiased in (exact, score):
        _, low, high = unbiased["bias_square"]
        assert low <= 0 <= high
    assert exact["tails"]["residual"][-1] < 1e-5, "two products are exact for three tokens"
    assert score["variance"][0] > 5 * exact["variance"][0]
    assert made["pathwise K=0"]["tails"]["growth"] == [1.0] * 4
    few = [measure(request(run, 8, 2, seed=seed), RUNTIME) for seed in (0, 0, 1)]
    assert few[0] == few[1]
    assert few[0]["estimators"] != few[2]["estimators"]


def test_the_command_prints_writes_and_draws(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figure = tmp_path / "e.json", tmp_path / "e.png"
    words = ["estimators", str(run), "--rollouts", "8", "--cot-tokens", "3", "--out", str(out), "--figure", str(figure)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in estimators.ESTIMATORS)
    told = json.loads(out.read_text())
    assert told["policy"] == "checkpoint"
    assert (told["rollouts"], told["cot_tokens"], told["seed"], told["samples_per_prompt"]) == (8, 3, 0, 8)
    assert figure.read_bytes().startswith(b"\x89PNG")


def altered(run: Path, folder: Path, **parts: Any) -> Path:
    """Returns a copy of a run whose spec has other parts."""
    target = folder / "runs" / "toy" / "sums" / "other" / "seed0"
    shutil.copytree(run, target)
    manifest = read(RunManifest, run / "manifest.json")
    spec = RunSpec.model_validate(manifest.spec.model_dump() | parts)
    write(target / "manifest.json", manifest.model_copy(update={"spec": spec}))
    return target


QUIET = TokenMode(tokens="soft", temperature=0.5)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"mode": HARD}, "tokens: hard"),
        ({"mode": QUIET}, "noise_scale: 0.0"),
        ({"training": {"objective": "grpo", "cot_term": False}}, "objective: grpo"),
    ],
)
def test_runs_without_a_path_are_refused_in_one_line(
    parts: dict[str, Any], why: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimators", str(altered(run, tmp_path, **parts))]) == 1
    assert_one_line(capsys, why)


def assert_one_line(capsys: pytest.CaptureFixture[str], why: str) -> None:
    """Asserts that an error was told in one line that says why."""
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("softtok: on ")]
    assert len(error) == 1 and error[0].startswith("softtok: error: ") and why in error[0], error


def test_an_untouched_model_is_refused(tiny_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base_run(base_spec(toy_model()), tiny_toy, tmp_path / "base")
    assert main(["estimators", str(tmp_path / "base")]) == 1
    assert_one_line(capsys, "untouched model")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--rollouts", "7"], "--rollouts 7"),
        (["--cot-tokens", "1"], "--cot-tokens 1"),
        (["--cot-tokens", "100000"], "positions"),
        (["--data", "missing.parquet"], "missing.parquet does not exist"),
        (["--figure", "figure.doc"], "figure.doc"),
        (["--runtime", "missing.json"], "missing.json"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    words: list[str], why: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimators", str(run), *words]) == 1
    assert_one_line(capsys, why)


@pytest.mark.parametrize(
    ("missing", "words", "why"),
    [
        ("results/data", [], "--data FILE"),
        ("results/models", ["--base"], "--base"),
        ("manifest.json", [], "finished training run"),
        ("checkpoint", [], "checkpoint"),
        ("", [], "does not exist"),
    ],
)
def test_missing_files_are_told_in_one_line(
    missing: str, words: list[str], why: str, run: Path, results: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = shutil.copytree(results, tmp_path / "project")
    copy = root / run.relative_to(results)
    gone = root / missing if missing.startswith("results") else copy / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert main(["estimators", str(copy), *words]) == 1
    assert_one_line(capsys, why)
