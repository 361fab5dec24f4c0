"""Settings of a study that contradict each other, or that no job would use, are told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from softtok.config.grid import Grid
from softtok.config.load import load, read
from softtok.config.settings import SampledMode, TokenMode
from softtok.errors import UserError
from softtok.problems.local_files import local_files
from softtok.report.study import Study
from tests.support.configurations import Edit, basic, both, drop, grid_of, put

THINKING = {"tokens": "soft", "temperature": 0.5, "end_entropy": 0.1}
GREEDY = put("inference_sets/two", ["hard-greedy"])
MORE = put("inference_modes/soft-many", {"like": "soft-sample", "samples": 16})
CONTRADICTIONS: dict[str, tuple[Edit, str]] = {
    "k without a sampled mode": (
        both(GREEDY, put("studies/first/k", [8])),
        "studies.first.k: pass@8 needs 8 samples; inference mode 'hard-greedy' has samples: 1",
    ),
    "one k of several": (
        put("studies/first/k", [1, 4, 5]),
        "studies.first.k: pass@5 needs 5 samples; inference mode 'soft-sample' has samples: 4",
    ),
    "k beyond all modes": (
        both(MORE, put("inference_sets/two", ["soft-sample", "soft-many"]), put("studies/first/k", [17])),
        "studies.first.k: pass@17 needs 17 samples; inference mode 'soft-many' has samples: 16, and no mode of this",
    ),
    "k beyond the modes of its study, within those of another": (
        both(
            MORE,
            put("inference_sets/many", ["soft-many"]),
            put("studies/other", {"models": ["toy"], "test_sets": ["sums"], "inference_sets": ["many"], "k": [16]}),
            put("studies/first/k", [16]),
        ),
        "studies.first.k: pass@16 needs 16 samples",
    ),
    "k twice": (put("studies/first/k", [4, 1, 4]), "studies.first.k: [4, 1, 4] names a k twice"),
    "k of choices": (
        both(drop("studies/first/test_sets"), drop("studies/first/inference_sets"), put("studies/first/k", [1])),
        "studies.first.k: has no effect in a study without test_sets",
    ),
    "inference without tests": (
        drop("studies/first/test_sets"),
        "studies.first.inference_sets: has no effect in a study without test_sets",
    ),
    "a list that every block replaces": (
        put("studies/first/models", ["toy"]),
        "studies.first.models: has no effect: every block of the grid has its own list",
    ),
    "a wrong answer worth more than a right one": (
        put("training", {"reward_correct": 1.0}),
        "training.reward_boxed: a wrong answer would get 10 and a right one reward_correct: 1",
    ),
    "a wrong answer worth as much, by two layers": (
        both(put("models/toy/training/reward_correct", 5.0), put("train_sets/sums/training/reward_boxed", 5.0)),
        "training.reward_boxed: a wrong answer would get 5 and a right one reward_correct: 5 (model 'toy', train set",
    ),
    "an end that no CoT reaches": (
        both(put("inference_modes/thinking", THINKING), put("inference_sets/two", ["thinking"])),
        "inference_modes.thinking.end_entropy_steps: 256 steps do not fit into max_cot_tokens: 20 of test set 'sums'",
    ),
    "top_k of all tokens": (
        put("training_modes/soft/top_k", 2048),
        "training_modes.soft.top_k: 2048 leaves no token out: model 'toy' has vocabulary: 2048",
    ),
    "top_k of all tokens in tests": (
        both(put("models/toy/toy/vocabulary", 300), put("inference_modes/soft-sample/top_k", 300)),
        "inference_modes.soft-sample.top_k: 300 leaves no token out: model 'toy' has vocabulary: 300",
    ),
    "a range of ratios that are 1": (
        put("training_modes/hard/training", {"objective": "grpo", "clip_range": 0.1}),
        "training_modes.hard.training.clip_range: has no effect on a single update on each rollout",
    ),
    "checkpoints between validations": (
        put("training_modes/hard/training", {"validate_every": 7, "checkpoint_steps": [15, 19]}),
        "training_modes.hard.training.checkpoint_steps: no validation falls in [15, 19] with validate_every: 7",
    ),
    "checkpoints behind the end": (
        put("training_modes/hard/training", {"checkpoint_steps": [21, 30]}),
        "training_modes.hard.training.checkpoint_steps: no validation falls in [21, 30]",
    ),
}
RIGHT: dict[str, Edit] = {
    "k of one of the modes": both(
        MORE, put("inference_sets/two", ["soft-sample", "soft-many"]), put("studies/first/k", [16])
    ),
    "k of all samples": put("studies/first/k", [4]),
    "k of 1 without a sampled mode": both(GREEDY, put("studies/first/k", [1])),
    "a list that one block replaces": both(
        put("studies/first/models", ["toy"]),
        put("studies/first/grid", [{"models": ["toy"], "train_sets": ["sums"]}, {"train_sets": ["sums"]}]),
    ),
    "a reward of both": put("training", {"reward_correct": 1.0, "reward_boxed": 0.0}),
    "an end that a CoT reaches": both(
        put("inference_modes/thinking", {**THINKING, "end_entropy_steps": 20}), put("inference_sets/two", ["thinking"])
    ),
    "top_k of all but one": put("training_modes/soft/top_k", 2047),
    "a range of ratios": put(
        "training_modes/hard/training", {"objective": "ppo-clip", "updates_per_step": 2, "clip_range": 0.1}
    ),
    "checkpoints at a validation": put(
        "training_modes/hard/training", {"validate_every": 7, "checkpoint_steps": [14, 14]}
    ),
    "checkpoints at the end": put("training_modes/hard/training", {"validate_every": 7, "checkpoint_steps": [20, 20]}),
    "checkpoints at the end and behind": put("training_modes/hard/training", {"checkpoint_steps": [20, 99]}),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradiction_is_one_line(name: str) -> None:
    edit, message = CONTRADICTIONS[name]
    with pytest.raises(UserError) as caught:
        grid_of(edit)
    assert f"config: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RIGHT)
def test_what_only_looks_like_a_contradiction_is_right(name: str) -> None:
    assert grid_of(RIGHT[name]).studies["first"].runs


def test_every_k_of_a_study_is_measured_in_some_mode() -> None:
    """For all small lists of k and samples: accepted exactly if each k has a mode with so many samples."""
    for most in (1, 2, 3, 5):
        for k in ([1], [2], [3], [5], [1, 2], [2, 5]):
            config = basic()
            samples = {"like": "soft-sample", "samples": most}
            config["inference_modes"]["m"] = samples
            config["inference_sets"]["two"] = ["hard-greedy", "m"]
            config["studies"]["first"]["k"] = k
            try:
                made = bool(Grid(load(config)).studies["first"].spec.k)
            except UserError:
                made = False
            assert made == (max(k) <= most)


# Folders whose names look like patterns


@pytest.mark.parametrize("name", ["[x]", "{y}", "a[1-3]", "b*c", "what?", "d{0}e", "f'g", "h i", "ö"])
def test_folders_with_any_name_hold_data_and_plug_ins(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "local.jsonl").write_text('{"q": "1 + 1?", "a": "2"}\n')
    (folder / "rewards.py").write_text("def right(answer, gold):\n    return answer == gold\n")
    config = basic()
    for edit in (put("studies/first/test_sets", ["local"]), put("test_sets/local/reward", "rewards.py:right")):
        edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    (found,) = {
        item.data.spec.source.model_dump_json()
        for items in Grid(read(folder / "config.yaml", (), str(folder))).studies["first"].evaluations.values()
        for item in items.values()
    }
    assert '"sha256":["' in found
    assert '"path":"local.jsonl"' in found
    with pytest.raises(UserError, match=r"no file 'local\.jsonl'"):
        read(folder / "config.yaml", (), str(tmp_path))


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    for name in ("a[1].jsonl", "a1.jsonl", "b2.jsonl", "b1.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "b3.jsonl").mkdir()
    assert [path.name for path in local_files("a[1].jsonl", tmp_path)] == ["a[1].jsonl"]
    assert [path.name for path in local_files("b*.jsonl", tmp_path)] == ["b1.jsonl", "b2.jsonl"]
    assert [path.name for path in local_files(["b2.jsonl", "a*"], tmp_path)] == ["b2.jsonl", "a1.jsonl", "a[1].jsonl"]
    assert local_files(str(tmp_path / "a1.jsonl"), None) == local_files("a1.jsonl", tmp_path)
    with pytest.raises(UserError, match=r"no file 'c\*' in "):
        local_files(["b2.jsonl", "c*"], tmp_path)


# What a mode says of itself


def test_modes_say_what_training_may_do_with_them() -> None:
    modes = {
        "hard": TokenMode(tokens="hard"),
        "argmax": TokenMode(tokens="hard", temperature=0.0),
        "mixed": TokenMode(tokens="hard", inputs_beta=1.0),
        "soft": TokenMode(tokens="soft", noise_scale=0.3),
        "noiseless": TokenMode(tokens="soft"),
        "hidden": TokenMode(tokens="soft", noise_scale=0.3, noise_at="hidden"),
        "gumbel": TokenMode(tokens="soft", noise="gumbel"),
        "own": TokenMode(tokens="modes.py:Mine", noise_scale=0.3),
    }

    def those(**answers: object) -> set[str]:
        ((name, answer),) = answers.items()
        return {
            key
            for key, mode in modes.items()
            if (found() if callable(found := getattr(mode, name)) else found) == answer
        }

    assert those(feeds_tokens=True) == {"hard", "argmax"}
    assert those(sound_ratios=True) == {"hard", "argmax", "mixed", "own"}
    assert those(noise_place="embedding") == {"soft", "own"}
    assert those(noise_place="hidden") == {"hidden"}
    assert those(no_kl=None) == {"hard", "mixed", "soft", "own"}
    assert {key for key, mode in modes.items() if list(mode.not_trained())} == {"argmax", "noiseless"}
    assert {key for key, mode in modes.items() if mode.inference_only()} == {"mixed"}


def test_families_are_found_by_what_modes_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = {
        "one": SampledMode(tokens="hard", temperature=0.0),
        "mixed": SampledMode(tokens="hard", inputs_beta=1.0, samples=4),
        "many": SampledMode(tokens="hard", samples=4),
    }
    monkeypatch.setattr(Study, "inference_modes", modes)
    families = Study(grid_of().studies["first"].spec).families()
    assert {tuple(family) for family in families.values()} == {("one", "many"), (None, "mixed")}
