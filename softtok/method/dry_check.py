"""Dry checks of a user's token modes and objectives: each runs on a small example before any work starts.

What is wrong is one line that names the user's file and line: code that raises, results of the wrong shape, numbers
that are not finite, noise that is not as large as the mode says. Where a training is pathwise, `path_check.py` looks at
the gradient.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from softtok import plugins
from softtok.config.settings import TokenMode, TrainingSettings
from softtok.method.objectives import Objective, objective_of
from softtok.method.path_check import check_path, smooth
from softtok.method.sampling import SINGLE_ROW_TEMPERATURE
from softtok.method.steps import Predictions
from softtok.method.token_modes import CotTokens, LogitNoise, SoftTokens, bind, class_of, greedy
from softtok.method.vocabulary_products import Vocabulary
from softtok.plugins import Plugin, Reference, blaming

ROWS, STEPS, WIDTH, VOCABULARY = 16, 2, 8, 64
NOISE_SIZES = (0.5, 2.0)  # where the mean of some 100 sizes lies that are 1 on average
MEAN_SIZES = (0.8, 1.25)  # the same for DRAWS rows
DRAWS = 4096  # rows of noise that the log-density is compared with
UNIT = {"embedding": 1.0, "hidden": 1.0, "logits": 1.0}
DOING = "in the dry check before any work"


def check_method(modes: Iterable[TokenMode], training: TrainingSettings | None = None) -> list[str]:
    """Tries the plug-ins on an example and returns their names. Raises UserError for the first that does not work."""
    modes, works = list(modes), []
    for mode in modes:
        if isinstance(mode.tokens, Reference):
            plugin = plugins.read(mode.tokens)
            _refuse_incomplete(mode, plugin)
            for tried in (mode, greedy(mode)):
                with blaming(plugin, DOING):
                    _try_tokens(bind(tried, UNIT), plugin)
            if training is not None:
                _refuse_untrainable(mode, training, plugin)
            if training is not None and training.estimator == "pathwise":
                with blaming(plugin, DOING):
                    check_path(bind(mode, UNIT), bind(smooth(mode), UNIT), plugin)
            works.append(f"tokens {mode.tokens}")
    if training is not None and isinstance(training.objective, Reference):
        plugin = plugins.read(training.objective)
        with blaming(plugin, DOING):
            _try_objective(objective_of(training), plugin)
        _refuse_ratios(objective_of(training), training, modes, plugin)
        works.append(f"objective {training.objective}")
    return works


def _refuse_incomplete(mode: TokenMode, plugin: Plugin) -> None:
    """Raises UserError for a class that lacks a method or an attribute which every mode has."""
    tokens = class_of(mode)
    missing = [name for name in ("mixes", "without_noise") if not hasattr(tokens, name)]
    missing += sorted(tokens.__abstractmethods__)
    if missing:
        raise plugin.fault(f"has no {', '.join(missing)}; define what CotTokens asks for, or derive it from SoftTokens")


def _try_tokens(tokens: CotTokens, plugin: Plugin) -> None:
    """Makes two steps of a small random model, records them, and scores them again."""
    generator = torch.Generator().manual_seed(0)
    embedding_VD, head_VD = (torch.randn(VOCABULARY, WIDTH, generator=generator) for _ in range(2))
    hidden_TND = torch.randn(STEPS, ROWS, WIDTH, generator=generator)
    vocabulary = Vocabulary(head_VD, embedding_VD)
    draws = tokens.draws([f"row {row}" for row in range(ROWS)], embedding_VD)
    record, ids = tokens.new_record(STEPS, embedding_VD, draws), torch.zeros(STEPS, ROWS, dtype=torch.long)
    for step, hidden_ND in enumerate(hidden_TND):
        draw = draws.at(step, np.arange(ROWS))
        made = tokens.step(Predictions(hidden_ND, vocabulary.logits(hidden_ND), vocabulary), draw)
        _expect(plugin, "step: x_ND", made.x_ND, (ROWS, WIDTH))
        _expect(plugin, "step: ids_N", made.ids_N, (ROWS,))
        if not bool(((made.ids_N >= 0) & (made.ids_N < VOCABULARY)).all()):
            raise plugin.fault("step: ids_N holds ids that are not in the vocabulary")
        _expect(plugin, "step: near_tie_N", made.near_tie_N, (ROWS,))
        if record is not None:
            record.note((slice(None), step), made)
        ids[step] = made.ids_N
    if tokens.draw_kind == "none":
        return  # without noise there is nothing to score
    embedding_VD.requires_grad_(tokens.mode.temperature < SINGLE_ROW_TEMPERATURE)  # a row of E has no other gradient
    columns, rows = (part.flatten() for part in np.indices((STEPS, ROWS)))
    hidden_MD = hidden_TND.flatten(0, 1).requires_grad_()
    predicted = Predictions(hidden_MD, vocabulary.logits(hidden_MD), vocabulary)
    scores = tokens.score(predicted, ids.flatten(), record, (rows, columns))
    _expect(plugin, "score: log_prob_M", scores.log_prob_M, (STEPS * ROWS,))
    if not scores.log_prob_M.requires_grad:
        raise plugin.fault("score: log_prob_M has no gradient; is its mean a constant?")
    scores.log_prob_M.sum().backward()
    if scores.noise_M is not None:
        _expect(plugin, "score: noise_M", scores.noise_M, (STEPS * ROWS,))
        size = float(scores.noise_M.mean())
        if not NOISE_SIZES[0] < size < NOISE_SIZES[1]:
            raise plugin.fault(f"score: noise_M is {size:.2g} on average and not 1; do noise and noise_size agree?")
    made_by = type(tokens)
    if isinstance(tokens, SoftTokens) and made_by.step is SoftTokens.step and made_by.score is SoftTokens.score:
        _try_density(tokens, plugin)


def _try_density(tokens: SoftTokens, plugin: Plugin) -> None:
    """Raises UserError where noise e and log-density disagree: E[f(e) s] = E[f'(e)], with s the gradient by the mean.

    The identity (integration by parts) holds for every density; f is e and e / (1 + e^2), both in units of noise_std.
    """
    generator = torch.Generator().manual_seed(0)
    make = torch.rand if tokens.draw_kind == "uniform" else torch.randn
    width = tokens.draw_width(torch.empty(VOCABULARY, WIDTH))
    noise_MD = tokens.noise(make(DRAWS, width, generator=generator)).detach()
    size = float(tokens.noise_size(noise_MD).mean())
    if not MEAN_SIZES[0] < size < MEAN_SIZES[1]:
        raise plugin.fault(f"noise_size: is {size:.3g} on average and not 1; is noise scaled to noise_std?")
    mean_MD = torch.zeros_like(noise_MD).requires_grad_()
    (score_MD,) = torch.autograd.grad(tokens.log_density(noise_MD, mean_MD).sum(), mean_MD)
    e_MD, s_MD = (noise_MD / tokens.noise_std).double(), (score_MD * tokens.noise_std).double()
    for f_MD, slope_MD in ((e_MD, 1.0), (e_MD / (1 + e_MD**2), (1 - e_MD**2) / (1 + e_MD**2) ** 2)):
        gap_M = (f_MD * s_MD - slope_MD).mean(1)
        if not abs(float(gap_M.mean())) <= 6 * float(gap_M.std()) / len(gap_M) ** 0.5 + 1e-3:
            raise plugin.fault("log_density is not that of noise: its gradient by the mean disagrees with the draws")


def _refuse_untrainable(mode: TokenMode, training: TrainingSettings, plugin: Plugin) -> None:
    """Raises UserError where a mode has no noise to learn from, or would borrow the KL of a Gaussian."""
    if training.cot_term and bind(mode, UNIT).draw_kind == "none":
        raise plugin.fault(
            "draws nothing with these settings, so CoT tokens have no log-probability to learn from; set a"
            " noise_scale, or training: {cot_term: false}"
        )
    tokens = class_of(mode)
    if not issubclass(tokens, SoftTokens) or training.kl_coefficient == 0:
        return
    if tokens.kl is LogitNoise.kl:
        raise plugin.fault("has noise on the logits and no kl; define kl, or set kl_coefficient: 0")
    if tokens.kl is not SoftTokens.kl:
        return
    if tokens.log_density is not SoftTokens.log_density:
        raise plugin.fault("has a log_density of its own and no kl; define kl, or set kl_coefficient: 0")
    if mode.noise_place is None:
        raise plugin.fault("has no noise, so its KL to the base is infinite; set a noise_scale, or kl_coefficient: 0")


def _try_objective(objective: Objective, plugin: Plugin) -> None:
    """Weighs the tokens of two groups, one of them without a signal."""
    rewards_BG = torch.tensor([[100.0, 0.0, 10.0, 0.0], [10.0, 10.0, 10.0, 10.0]])
    advantages_BG = objective.advantages(rewards_BG)
    _expect(plugin, "advantages", advantages_BG, (2, 4))
    tokens_BG = np.array([[5, 7, 3, 9], [2, 2, 2, 2]])
    normaliser_BG = torch.as_tensor(objective.normaliser(tokens_BG, advantages_BG.numpy()))
    _expect(plugin, "normaliser", normaliser_BG, (2, 4))
    if not bool((normaliser_BG > 0).all()):
        raise plugin.fault("normaliser: is not positive everywhere")
    if objective.has_ratios:
        log_prob_M = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
        loss_M, beyond_M = objective.surrogate(log_prob_M, torch.tensor([-1.0, -1.9, -4.0]), torch.ones(3))
        _expect(plugin, "surrogate: the loss", loss_M, (3,))
        _expect(plugin, "surrogate: what is beyond the range", beyond_M, (3,))


def _refuse_ratios(
    objective: Objective, training: TrainingSettings, modes: Iterable[TokenMode], plugin: Plugin
) -> None:
    """Raises UserError where several updates need ratios that the objective or the tokens do not have."""
    if training.updates_per_step > 1 and not objective.has_ratios:
        raise plugin.fault("has no ratios to correct a second update by (has_ratios); set updates_per_step: 1")
    if objective.has_ratios and training.cot_term and not all(class_of(mode).has_ratios for mode in modes):
        raise plugin.fault(
            "forms importance ratios (has_ratios), and those of soft CoT tokens are unsound; set tokens: hard or"
            " training: {cot_term: false}"
        )


def _expect(plugin: Plugin, what: str, value: object, shape: tuple[int, ...]) -> None:
    """Raises UserError where a result is not a finite tensor of this shape."""
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
        found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else plugins.shown(value)
        raise plugin.fault(f"{what}: has {found}, not shape {shape}")
    if not bool(torch.isfinite(value.double()).all()):
        raise plugin.fault(f"{what}: is not finite everywhere")
