"""The dry check of token modes and objectives: built-in kinds pass as bases, and what is wrong is one line."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from softtok.config.settings import TokenMode, TrainingSettings
from softtok.errors import UserError
from softtok.method.dry_check import check_method
from softtok.plugins import Reference

HEAD = """from softtok.method.objectives import GRPO, Objective
from softtok.method.steps import CotStep, Scores
from softtok.method.token_modes import CotTokens, GumbelNoise, HardTokens, HiddenNoise, LogitNoise, SoftTokens
"""
NOISY = {"noise_scale": 0.3}


def reference(tmp_path: Path, code: str) -> Reference:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + code, encoding="utf-8")
    return Reference(source=str(path), name="Mine", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("HardTokens", {}),
        ("SoftTokens", NOISY),
        ("HiddenNoise", NOISY | {"noise_at": "hidden"}),
        ("LogitNoise", NOISY | {"noise_at": "logits"}),
        ("GumbelNoise", {"noise": "gumbel"}),
    ],
)
def test_every_built_in_kind_can_be_derived_from(tmp_path: Path, base: str, settings: dict[str, Any]) -> None:
    """Without noise too, as in greedy validation."""
    mode = TokenMode(tokens=reference(tmp_path, f"class Mine({base}):\n    pass\n"), temperature=0.5, **settings)
    assert check_method([mode], TrainingSettings()) == [f"tokens {mode.tokens}"]


SHIFTED = "class Mine(SoftTokens):\n    def noise(self, draw_ND):\n        return 3 * self.noise_std * draw_ND\n"
SIGN = "class Mine(SoftTokens):\n    def log_density(self, a, m):\n        return -super().log_density(a, m)\n"
LAPLACE = """class Mine(SoftTokens):
    noise_draws = "uniform"
    def noise(self, draw_ND):
        centred = draw_ND - 0.5
        scale = self.noise_std / 2**0.5
        return -scale * centred.sign() * (1 - 2 * centred.abs()).clamp_min(1e-7).log()
    def logdensity(self, a, m):
        return -(a - m).abs().sum(-1) / (self.noise_std / 2**0.5)
"""
CONSTANT = "class Mine(SoftTokens):\n    def mean(self, predicted):\n        return super().mean(predicted).detach()\n"
DENSITY = "class Mine(SoftTokens):\n    def log_density(self, a, m):\n        return super().log_density(a, m)\n"
BARE = """class Mine(CotTokens):
    def step(self, predicted, draw): pass
    def score(self, predicted, ids_M, record, at): pass
"""
MISTAKES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "abstract": (BARE, NOISY, {}, "Mine has no mixes, without_noise, draw_kind, draw_width, kl"),
    "too much noise": (SHIFTED, NOISY, {}, "score: noise_M is 9"),
    "a little too much noise": (SHIFTED.replace("3 *", "1.3 *"), NOISY, {}, "noise_size: is 1.69 on average"),
    "a density of the wrong sign": (SIGN, NOISY, {}, "log_density is not that of noise"),
    "a density of the wrong scale": (
        SIGN.replace("-super", "2 * super"),
        NOISY,
        {},
        "log_density is not that of noise",
    ),
    "a density that is misspelt": (LAPLACE, NOISY, {}, "log_density is not that of noise"),
    "no gradient": (CONSTANT, NOISY, {}, "log_prob_M has no gradient"),
    "nothing drawn": ("class Mine(SoftTokens): pass\n", {}, {}, "draws nothing with these settings"),
    "another's KL": (DENSITY, NOISY, {"kl_coefficient": 0.1}, "has a log_density of its own and no kl"),
    "infinite KL": (
        "class Mine(SoftTokens): pass\n",
        {},
        {"kl_coefficient": 0.1, "cot_term": False},
        "has no noise, so its KL to the base is infinite",
    ),
    "KL of logits": (
        "class Mine(LogitNoise): pass\n",
        NOISY | {"noise_at": "logits"},
        {"kl_coefficient": 0.1},
        "has noise on the logits and no kl",
    ),
    "raises": ("class Mine(SoftTokens):\n    def noise(self, draw_ND):\n        return 1 / 0\n", NOISY, {}, "line 6: "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_token_mode_is_one_line(tmp_path: Path, name: str) -> None:
    code, settings, training, says = MISTAKES[name]
    mode = TokenMode(tokens=reference(tmp_path, code), temperature=0.5, **settings)
    with pytest.raises(UserError) as caught:
        check_method([mode], TrainingSettings(**training))
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "mine.py")) and "\n" not in str(caught.value)


OBJECTIVES = {
    "shape": (
        "class Mine(Objective):\n    def advantages(self, rewards_BG):\n        return rewards_BG[0]\n",
        1,
        "advantages: has shape (4,), not shape (2, 4)",
    ),
    "zero": (
        "class Mine(Objective):\n    def normaliser(self, t, a):\n        return 0 * t\n",
        1,
        "normaliser: is not positive everywhere",
    ),
    "no ratios": ("class Mine(Objective): pass\n", 2, "has no ratios to correct a second update by"),
    "soft ratios": ("class Mine(GRPO): pass\n", 2, "those of soft CoT tokens are unsound"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_mistake_in_an_objective_is_one_line(tmp_path: Path, name: str) -> None:
    code, updates, says = OBJECTIVES[name]
    training = TrainingSettings(objective=reference(tmp_path, code), updates_per_step=updates)
    with pytest.raises(UserError) as caught:
        check_method([TokenMode(tokens="soft", temperature=0.5, noise_scale=0.3)], training)
    assert says in str(caught.value) and "\n" not in str(caught.value)
