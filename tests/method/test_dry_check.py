"""The dry check of token modes and objectives: built-in kinds pass as bases, and what is wrong is one line."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from examples import laplace_noise
from softtok.config.settings import TokenMode, TrainingSettings
from softtok.errors import UserError
from softtok.method.dry_check import check_method
from softtok.method.path_check import remark
from softtok.method.sampling import SINGLE_ROW_TEMPERATURE
from softtok.plugins import Reference

HEAD = """import torch
from softtok.method.objectives import GRPO, Objective
from softtok.method.sampling import mix
from softtok.method.steps import CotStep, Predictions, Scores
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
    "raises": ("class Mine(SoftTokens):\n    def noise(self, draw_ND):\n        return 1 / 0\n", NOISY, {}, "line 8: "),
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


# The path of `estimator: pathwise`

PATHWISE = TrainingSettings(estimator="pathwise")
HIDDEN, LOGITS = NOISY | {"noise_at": "hidden"}, NOISY | {"noise_at": "logits"}
PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "embedding": ("SoftTokens", NOISY),
    "hidden": ("HiddenNoise", HIDDEN),
    "logits": ("LogitNoise", LOGITS),
    "gumbel": ("GumbelNoise", {"noise": "gumbel"}),
}


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("place", PLACES)
def test_the_path_of_every_built_in_kind_passes(
    tmp_path: Path, place: str, top_k: int | None, temperature: float
) -> None:
    """With large noise too, and where single rows or a set of tokens jump."""
    base, settings = PLACES[place]
    code = reference(tmp_path, f"class Mine({base}):\n    pass\n")
    for scale in (settings.get("noise_scale", 0.0), 10 * settings.get("noise_scale", 0.0)):
        asked = settings | {"noise_scale": scale}
        mode = TokenMode(tokens=code, temperature=temperature, top_k=top_k, **asked)
        assert check_method([mode], PATHWISE) == [f"tokens {mode.tokens}"]


def test_the_path_of_the_example_passes() -> None:
    example = Path(laplace_noise.__file__)
    code = Reference(source=str(example), name="LaplaceNoise", sha256=hashlib.sha256(example.read_bytes()).hexdigest())
    mode = TokenMode(tokens=code, temperature=0.5, noise_scale=0.3)
    assert check_method([mode], PATHWISE) == [f"tokens {code}"]


OF_PATH = "    def path(self, predicted, record, at, mean_MD=None):\n"
OWN = "class Mine(SoftTokens):\n" + OF_PATH
RIGHT = "        x = super().path(predicted, record, at, mean_MD)\n"
STEP = """    def step(self, predicted, draw):
        made = super().step(predicted, draw)
        return made if draw is None else CotStep({x}, made.ids_N, made.near_tie_N, {mean})
"""
AGAIN = """class Mine(LogitNoise):
    def path(self, predicted, record, at, mean_MD=None):
        rows, steps = at
        kept = self.with_noise(predicted.logits_NV, record.draws.again({order}))
        return mix(kept, predicted.vocabulary.embedding_VD, self.mode.temperature)
"""
FED, OF_HIDDEN, OF_HEAD = "path: is not the x that step fed", "its gradient by hidden", "its gradient by head"
OF_E = "its gradient by embedding"
WRONG_PATHS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no path": ("class Mine(HardTokens): pass\n", {}, "has no path for estimator: pathwise; define path, or set"),
    "sign": (OWN + RIGHT + "        return 2 * x.detach() - x\n", NOISY, OF_HIDDEN),
    "factor": (OWN + RIGHT + "        return 2 * x - x.detach()\n", NOISY, OF_HIDDEN),
    "a constant": (OWN + RIGHT + "        return x.detach()\n", NOISY, OF_HIDDEN),
    "no dependence on E": (
        OWN + "        return super().path(predicted, record, at, mix(predicted.logits_NV,"
        " predicted.vocabulary.embedding, self.mode.temperature))\n",
        NOISY,
        OF_E,
    ),
    "no dependence on the head": (
        OWN + "        logits = predicted.hidden_ND @ predicted.vocabulary.frozen().head_VD.mT\n"
        "        return super().path(Predictions(predicted.hidden_ND, logits, predicted.vocabulary), record, at)\n",
        NOISY,
        OF_HEAD,
    ),
    "no dependence on the state": (
        OWN + "        logits = predicted.vocabulary.logits(predicted.hidden_ND.detach())\n"
        "        return super().path(Predictions(predicted.hidden_ND, logits, predicted.vocabulary), record, at)\n",
        NOISY,
        OF_HIDDEN,
    ),
    "noise made anew": (
        OWN + "        mean = self.mean(predicted)\n        return mean + self.noise(torch.randn(mean.shape))\n",
        NOISY,
        FED,
    ),
    "no noise": (OWN + "        return self.mean(predicted)\n", NOISY, FED),
    "draws of another step": (AGAIN.format(order="rows, 1 - steps"), LOGITS, FED),
    "draws of another row": (AGAIN.format(order="rows[::-1], steps"), LOGITS, FED),
    "another step with the path inherited": (
        "class Mine(SoftTokens):\n" + STEP.format(x="made.x_ND + 0.15 * predicted.hidden_ND", mean="made.mean_ND"),
        NOISY,
        OF_HIDDEN,
    ),
    "noise that depends on the mean": (
        "class Mine(SoftTokens):\n"
        + STEP.format(x="made.mean_ND + self.noise(draw) * (0.5 + made.mean_ND.sigmoid())", mean="made.mean_ND"),
        NOISY | {"noise_scale": 1.0},
        OF_HIDDEN,
    ),
    "a mean of another temperature": (
        OWN + "        mean = mix(predicted.logits_NV, predicted.vocabulary.embedding_VD, 1.0)\n"
        "        return super().path(predicted, record, at, mean)\n",
        NOISY,
        FED,
    ),
    "a top_k that is forgotten": (
        "class Mine(HiddenNoise):\n" + OF_PATH + "        a = SoftTokens.path(self, predicted, record, at, mean_MD)\n"
        "        vocabulary = predicted.vocabulary\n"
        "        return mix(vocabulary.logits(a), vocabulary.embedding_VD, self.mode.temperature)\n",
        HIDDEN | {"top_k": 3},
        FED,
    ),
    "raises": (OWN + "        return 1 / 0\n", NOISY, "raises ZeroDivisionError"),
    "shape": (OWN + RIGHT + "        return x[:1]\n", NOISY, "path: has shape (1, 6), not shape (16, 6)"),
}


@pytest.mark.parametrize("name", WRONG_PATHS)
def test_a_wrong_path_is_one_line_where_training_is_pathwise(tmp_path: Path, name: str) -> None:
    code, settings, says = WRONG_PATHS[name]
    mode = TokenMode(tokens=reference(tmp_path, code), temperature=0.5, **settings)
    with pytest.raises(UserError) as caught:
        check_method([mode], PATHWISE)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "mine.py")) and "\n" not in str(caught.value)


def test_a_wrong_path_does_no_harm_where_training_is_not_pathwise(tmp_path: Path) -> None:
    code, settings, _ = WRONG_PATHS["sign"]
    mode = TokenMode(tokens=reference(tmp_path, code), temperature=0.5, **settings)
    assert check_method([mode], TrainingSettings()) == [f"tokens {mode.tokens}"]


# What is said of fuzzy tokens


@pytest.mark.parametrize("place", PLACES)
def test_a_remark_is_made_of_the_temperatures_at_which_rows_are_looked_up(place: str) -> None:
    settings = PLACES[place][1]

    def said(temperature: float, **training: Any) -> str | None:
        chosen: dict[str, Any] = {"estimator": "pathwise"} | training
        return remark(TokenMode(tokens="soft", temperature=temperature, **settings), TrainingSettings(**chosen))

    assert said(SINGLE_ROW_TEMPERATURE) is None and said(0.5) is None
    assert said(1e-4, estimator="score") is None
    assert "below 0.02" in str(said(0.0199))
    fuzzy = str(said(1e-4))
    assert "but for near ties only the answer term and E's rows contribute, and at a near tie" in fuzzy
    assert fuzzy.endswith("the factor p(1-p)/tau reaches 2,500") and "\n" not in fuzzy
    assert str(said(1e-3)).endswith("reaches 250")
    assert "only the answer term contributes" in str(said(1e-4, embedding_gradient=False))
