"""`softtok think` shows the trajectories that the rollout makes, of everything that can be named as a model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from softtok.__main__ import EXIT_CTRL_C, main
from softtok.config.grid import Grid
from softtok.config.load import read
from softtok.evaluation import think as module
from softtok.evaluation.subjects import subject
from softtok.evaluation.think import Wanted, mode_of, think
from softtok.method.rollout import follow, rollout
from softtok.method.trajectories import Batch, Policy, Rollout
from softtok.models.base_model import base_run
from softtok.problems.prompt import decode
from softtok.problems.terminal import Page
from tests.support.gguf_files import Draft, shape_of, smollm_like, vocabulary, weights_of, write
from tests.support.specs import TEMPLATE, base_spec, toy_model
from tests.support.tiny_models import tiny_model

QUESTION = "start with 5, add 2, add 4. what is it?"
CONFIG = f"""
models:
  toy: {{toy: {{steps: 0, width: 16, layers: 1, heads: 2, mlp_width: 32}}, prompt: '{TEMPLATE}'}}
train_sets: {{sums: {{toy: {{task: sums, problems: 60}}, training: {{validation_problems: 8}}}}}}
training_modes: {{soft: {{tokens: soft, temperature: 0.5, noise_scale: 0.33}}}}
test_sets: {{sums: {{toy: {{task: sums, problems: 8}}}}}}
inference_modes:
  hard-sample: {{tokens: hard, samples: 4}}
  soft-sample: {{tokens: soft, temperature: 0.5, noise_scale: 0.33, samples: 4}}
inference_sets: {{two: [hard-sample, soft-sample]}}
evaluation: {{max_cot_tokens: 12, max_answer_tokens: 4}}
studies:
  s:
    {{title: S, models: [toy], train_sets: [sums], training_modes: [soft], seeds: [0], test_sets: [sums],
    inference_sets: [two]}}
run: [s]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def made_by(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Policy, Batch]]:
    """Notes the policies and batches whose trajectories are followed."""
    asked: list[tuple[Policy, Batch]] = []

    def noted(policy: Policy, batch: Batch) -> object:
        asked.append((policy, batch))
        return follow(policy, batch)

    monkeypatch.setattr(module, "follow", noted)
    return asked


def shown(config: Path, named: Path, wanted: Wanted) -> list[str]:
    """Returns the texts in the order in which they are written."""
    grid = Grid(read([config], (), None))
    with subject(str(named), grid, config.parent, grid.config.runtime_of("toy")) as found:
        return list(think(found, wanted, mode_of(grid.config, wanted.mode), grid, Page(80)))


@pytest.mark.parametrize("mode", ["hard-sample", "soft-sample", "soft"])
def test_what_is_shown_is_what_a_rollout_makes(
    mode: str, config: Path, tiny_toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = made_by(monkeypatch)
    wanted = Wanted(QUESTION, mode, ("11",), samples=3, top=4)
    texts = shown(config, tiny_toy, wanted)
    ((policy, batch),) = asked
    made = rollout(policy, batch)
    parts = re.split(r"sample \d of 3, \S+\n", "".join(texts))[1:]
    assert len(parts) == 3 and len(set(parts)) > 1
    for row, part in enumerate(parts):
        answer = policy.rules.answer_text(made.prefill(row), made.answers[row]).strip()
        assert f"\nanswer: {answer}\n" in part
        assert f"after {made.cot_lengths[row]} steps\n" in part
        assert re.search(r"\n(correct|wrong|unboxed|unparsed) \(gold: 11\)\n", part)
        (check_soft if mode != "hard-sample" else check_hard)(policy, made, row, part)


def test_every_sample_has_its_own_answer(config: Path, tiny_toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained toy answers all alike, so here each sample answers with its number."""

    def numbered(policy: Policy, batch: Batch) -> object:
        for rows in follow(policy, batch):
            for sample in range(3):
                rows.out.answers[sample] = policy.lm.tokenizer(f" {sample}", add_special_tokens=False)["input_ids"]
            yield rows

    monkeypatch.setattr(module, "follow", numbered)
    text = "".join(shown(config, tiny_toy, Wanted(QUESTION, "hard-sample", samples=3)))
    assert re.findall(r"(?m)^answer: .*?(\d)$", text) == ["0", "1", "2"]


def check_hard(policy: Policy, made: Rollout, row: int, part: str) -> None:
    cot = decode(policy.lm.tokenizer, made.cot(row))
    assert part.split("\nanswer: ")[0].split() == cot.split()


def check_soft(policy: Policy, made: Rollout, row: int, part: str) -> None:
    lines = [line for line in part.splitlines() if re.match(r" *\d+ ", line[:5])]
    assert len(lines) == made.cot_lengths[row] == len(made.thoughts[row])
    for step, (line, thought) in enumerate(zip(lines, made.thoughts[row], strict=True)):
        assert f"{float(made.entropy_NT[row, step]):5.2f} {thought.moved:5.2f}" in line
        assert len(thought.ids) <= 4 and (thought.weights[0] > 0.99 or f" {100 * thought.weights[0]:.0f}%" in line)


def test_steps_are_shown_while_the_model_thinks(config: Path, tiny_toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    grid = Grid(read([config], (), None))

    def counted(policy: Policy, batch: Batch) -> object:
        for rows in follow(policy, batch):
            steps.append(1)
            yield rows

    monkeypatch.setattr(module, "follow", counted)
    with subject(str(tiny_toy), grid, config.parent, grid.config.runtime_of("toy")) as found:
        texts = think(found, Wanted(QUESTION, "soft-sample"), mode_of(grid.config, "soft-sample"), grid, Page(80))
        next(texts)
        for made in range(1, 4):
            next(texts)
            assert len(steps) == made, "a step is written before the next one is made"


def test_a_run_a_model_a_folder_a_file_and_a_name_can_be_asked(
    config: Path, tiny_toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_run(base_spec(toy_model()), tiny_toy, tmp_path / "run")
    tokenizer = smollm_like()
    lm = tiny_model(vocabulary=tokenizer.get_vocab_size(), width=64)
    gguf = write(tmp_path / "model.gguf", Draft(shape_of(lm) | vocabulary(tokenizer), weights_of(lm)))
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in tiny_toy.iterdir():
        if path.name != "model.json":
            (plain / path.name).symlink_to(path)
    options = ["--mode", "soft-sample", "--config", str(config), "--results", str(tmp_path), "--cot-tokens", "3"]
    told = {}
    for named in (tmp_path / "run", tmp_path / "run/checkpoint", tiny_toy, plain, gguf, "toy"):
        assert main(["think", str(named), QUESTION, *options]) == 0, capsys.readouterr().err
        told[str(named)] = capsys.readouterr().out
        assert "answer: " in told[str(named)] and "\x1b" not in told[str(named)], "no colour outside of a terminal"
    texts = list(told.values())
    assert texts[0] == texts[1] == texts[2], "a run, its checkpoint and its model"
    assert len({*texts}) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing", QUESTION, "--mode", "soft-sample"], "nothing is no run, no model folder"),
        (["tiny", QUESTION, "--mode", "sofd-sample"], "there is no mode 'sofd-sample'; did you mean 'soft-sample'"),
        (["tiny", QUESTION, "--mode", "soft-sample", "--samples", "0"], "--samples, --top and --cot-tokens"),
        (["tiny", QUESTION, "--mode", "soft-sample", "--cot-tokens", "0"], "--samples, --top and --cot-tokens"),
        (["tiny", "word " * 9000, "--mode", "hard-sample"], "the question"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    words: list[str], told: str, config: Path, tiny_toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tiny_toy) if word == "tiny" else word for word in words]
    assert main(["think", *words, "--config", str(config)]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.thorough
def test_ctrl_c_ends_it_in_one_line(config: Path, tiny_toy: Path) -> None:
    words = ["think", str(tiny_toy), QUESTION, "--mode", "soft", "--samples", "64", "--config", str(config)]
    process = subprocess.Popen(
        [sys.executable, "-m", "softtok", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_CTRL_C and "interrupted" in errors and "Traceback" not in errors
