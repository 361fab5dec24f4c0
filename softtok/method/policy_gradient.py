"""The policy-gradient loss and its gradient, in one teacher-forced pass.

The paper's objective is RLOO:

    A_bg = r_bg - mean of the other G-1 rewards of the same prompt     (of those with a verdict; without one A = 0)
    loss = -1/(B G) sum_bg A_bg * [ sum_CoT log pi(x_t | x_<t) + sum_answer log pi(a_t | ...) ]

Other objectives (`objectives.py`) have other advantages, other weights and, for hard tokens, clipped ratios in the
place of log-probabilities. Two terms may be added: minus `entropy_bonus` times the entropy at CoT tokens (temperature
1), plus `kl_coefficient` times the KL to the base at all sampled tokens. Both divide by the objective's normaliser.

The recorded x is a constant: there is no back-propagation through time. With `estimator: pathwise` the term of the CoT
is another one, sum_t <lambda_t, F_t> with constant lambda (`pathwise.py`), which is the answer's gradient through x.

The vocabulary exists for a tile of tokens at a time: the gradient of a tile is formed at once and the tile forgotten
(`terms.py`). Rows without a verdict contribute nothing, to bonus and KL neither, and are not run; without bonus and KL
the same holds for rows without an advantage. Gradients add up in `.grad`; they depend on neither the micro-batch nor
the tile.

Shapes: B prompts, G samples, N = B * G rows, n rows of a micro-batch, L completion positions, T CoT steps, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from softtok.method.pathwise import PathwiseTerms
from softtok.method.teacher_forcing import (
    Completions,
    SharedPrompts,
    completion_inputs,
    lay_out,
    micro_batches,
    recorded_x,
)
from softtok.method.terms import TERMS, Experience, Loss, MicroBatch, PassStatistics, TiledTerms
from softtok.method.token_modes import CotTokens
from softtok.method.trajectories import Rollout
from softtok.method.vocabulary_products import Summed, Vocabulary
from softtok.models.language_model import LanguageModel, in_fp32


def accumulate_gradients(
    lm: LanguageModel,
    tokens: CotTokens,
    experience: Experience,
    loss: Loss,
    terms: tuple[str, ...] = TERMS,
    gradients: Mapping[torch.Tensor, torch.Tensor] | None = None,
) -> PassStatistics:
    """Adds the gradient of the loss to the `.grad` of the model's parameters; returns what the pass saw.

    `terms` restricts the loss to its CoT or its answer part; the gradients of the parts add up to that of the whole.
    `gradients` are those that an optimizer keeps in fp32 by parameter: head's and E's are added to there.
    """
    rollout, settings = experience.rollout, loss.settings
    rows = experience.rows(settings.regularised)
    terms = tuple(term for term in terms if term != "cot" or settings.cot_term or settings.regularised)
    if len(rows) == 0 or not terms:
        return PassStatistics()
    completions = lay_out(rollout)

    # 1. The prompts, once, and the matrices of the vocabulary.
    prompts = SharedPrompts(lm, rollout, rows)
    own, sums = trained_vocabulary(lm, tokens.mixes, settings.embedding_gradient, gradients or {})
    base = FrozenBase.of(loss, rollout, rows, tokens.mixes)
    kind = PathwiseTerms if settings.estimator == "pathwise" else TiledTerms
    tiles = kind(tokens, experience, completions, loss, own, base.vocabulary if base else None)

    # 2. The completions, a micro-batch at a time. The graph of the prompts exists all the while; where they are long,
    # rows get half of the tokens nevertheless.
    tiling = loss.tiling
    budget = max(tiling.micro_batch_tokens - prompts.positions, tiling.micro_batch_tokens // 2)
    for batch in micro_batches(completions.lengths_N, rows, prompts.width, budget):
        tiles.back_propagate(terms, run_again(lm, base, prompts, tiles, batch))

    # 3. On through the prompts, and into head and E.
    ends = [*prompts.gradients(), *sums.items()]
    torch.autograd.backward([root for root, _ in ends], [gradient.to(root.dtype) for root, gradient in ends])
    return tiles.statistics


def run_again(
    lm: LanguageModel, base: FrozenBase | None, prompts: SharedPrompts, tiles: TiledTerms, batch: np.ndarray
) -> MicroBatch:
    """Runs what these rows fed, and returns their states; x is a leaf where the gradient goes through it."""
    completions = tiles.completions
    fed = int(completions.lengths_N[batch].max()) - 1  # the last token's state predicts nothing
    x_nTD = recorded_x(tiles.experience.rollout, batch, fed)
    if isinstance(tiles, PathwiseTerms):
        assert x_nTD is not None, "the configuration refuses hard tokens"
        x_nTD.requires_grad_()
    states = prompts.predictors(lm, batch, completion_inputs(lm, completions, batch, fed, x_nTD))
    base_states = base.predictors(completions, batch, fed, x_nTD) if base else None
    return MicroBatch(batch, states, base_states, x_nTD)


def trained_vocabulary(
    lm: LanguageModel, mixtures: bool, embedding_gradient: bool, gradients: Mapping[torch.Tensor, torch.Tensor]
) -> tuple[Vocabulary, dict[torch.Tensor, torch.Tensor]]:
    """Returns head and E of the model in training, and the sums of their gradients that remain to be handed over.

    There are no such sums where fp32 gradients are given, or where the parameter's own gradient is fp32: those are
    added to. `mixtures` is that of `in_fp32`.
    """
    sums: dict[torch.Tensor, torch.Tensor] = {}

    def sum_of(parameter: torch.Tensor) -> torch.Tensor:
        known = gradients.get(parameter, parameter.grad)
        if known is not None and known.dtype == torch.float32:
            return known
        if parameter not in sums:
            sums[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        return sums[parameter]

    head_VD, embedding_VD = in_fp32(lm, mixtures)
    head = Summed(head_VD, sum_of(lm.head_VD))
    learned = sum_of(lm.embedding_VD) if mixtures and embedding_gradient else None
    return Vocabulary(head, Summed(embedding_VD, learned)), sums


class FrozenBase:
    """The base model that a KL term stays close to, run on the same trajectories without a gradient."""

    @torch.no_grad()
    def __init__(self, lm: LanguageModel, rollout: Rollout, rows: np.ndarray, mixtures: bool):
        self.lm = lm
        self.prompts = SharedPrompts(lm, rollout, rows)
        self.vocabulary = Vocabulary(*in_fp32(lm, mixtures))

    @classmethod
    def of(cls, loss: Loss, rollout: Rollout, rows: np.ndarray, mixtures: bool) -> FrozenBase | None:
        """Returns the base model of a loss with a KL term, or None if it has none."""
        if loss.settings.kl_coefficient == 0:
            return None
        assert loss.reference is not None, "a KL term needs the model to stay close to"
        return cls(loss.reference, rollout, rows, mixtures)

    @torch.no_grad()
    def predictors(
        self, completions: Completions, batch: np.ndarray, fed: int, x_nTD: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns its states at the same tokens, as `SharedPrompts.predictors` does."""
        inputs = completion_inputs(self.lm, completions, batch, fed, x_nTD)
        return self.prompts.predictors(self.lm, batch, inputs)
