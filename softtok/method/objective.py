"""The policy-gradient loss and its gradient, in one teacher-forced pass. The paper's objective is RLOO:

    A_bg = r_bg - mean of the other G-1 rewards of the same prompt
    loss = -1/(B G) sum_bg A_bg * [ sum_CoT log pi(x_t | x_<t) + sum_answer log pi(a_t | ...) ]

Its variants are settings of `TrainingSettings` (formulas: `losses.py`): other advantages and, for hard tokens,
clipped ratios in the place of log-probabilities; minus `entropy_bonus` times the entropy at CoT tokens (temperature 1),
plus `kl_coefficient` times the KL to the base at all sampled ones. Bonus and KL of a token weigh what its
log-probability weighs: 1/(B G), with GRPO divided by the sampled tokens of the row.

The pass feeds the recorded x again (a constant: no back-propagation through time), so its states are the rollout's.
Each prompt is run once with gradient, and its keys and values are shared by its samples. The vocabulary exists only for
a tile of tokens at a time: a tile's gradient is formed at once and the tile forgotten. Rows whose advantage is zero
contribute nothing and, without bonus and KL, are not run. Gradients add up in `.grad`; they depend on neither the
micro-batch nor the tile.

Shapes: B prompts, G samples, N = B * G rows, n rows of a micro-batch, P prompt and L completion positions, M tokens of
a tile, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from softtok.config.settings import RuntimeSettings, TrainingSettings
from softtok.method.losses import clipped, gaussian_kl, group_advantages, hard_kl, leave_one_out
from softtok.method.token_modes import CotTokens, entropy, gumbel, hard_log_prob, keep_top, mix, soft_log_density
from softtok.method.trajectories import Rollout
from softtok.method.vocabulary_products import Summed, project
from softtok.models.attention import layer_states
from softtok.models.language_model import LanguageModel, in_fp32, prefill

__all__ = ["accumulate_gradients", "group_advantages", "leave_one_out"]


@dataclass
class PassStatistics:
    """What a pass saw on the side, over the tokens it ran. Where the noise is not on the mixture, h stands for the
    action's mean. Noise on logits is drawn again, so that its check is one of the generator alone: there the flips tell
    whether it is the rollout's."""

    tokens: int = 0  # soft ones
    shadows: int = 0  # those whose ids are a recomputable argmax, ...
    flips: int = 0  # ... and of them those where it differs from the rollout's
    noise_square: float = 0.0  # sum of |x - h|^2 / (D sigma^2): its mean is 1 on-policy (soft)
    gap: float = 0.0  # largest |h_train - h_rollout| / sigma of any coordinate (soft)
    kl: float = 0.0  # sum of the KLs to the base, in nats
    kl_tokens: int = 0
    clipped: int = 0  # ratios beyond the clip range
    ratios: int = 0

    def as_metrics(self) -> dict[str, float]:
        metrics = {}
        if self.tokens:
            metrics["recomputation_gap"] = self.gap
            metrics["noise_check"] = self.noise_square / self.tokens
        if self.shadows:
            metrics["shadow_flips"] = self.flips / self.shadows
        if self.kl_tokens:
            metrics["kl"] = self.kl / self.kl_tokens
        if self.ratios:
            metrics["clip_fraction"] = self.clipped / self.ratios
        return metrics


class SharedPromptLayer(CacheLayerMixin):
    """A cache layer for one pass: prompt keys and values per row in front of the completion's own. Keeps the graph."""

    def __init__(self, keys_nHPK: torch.Tensor, values_nHPK: torch.Tensor):
        super().__init__()
        self.keys, self.values, self.is_initialized = keys_nHPK, values_nHPK, True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the constructor fills the layer."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def get_max_length(self) -> int:
        return -1


@dataclass(frozen=True)
class Completions:
    """The rows of a rollout laid out for teacher forcing: [CoT | prefilled words | answer | padding]."""

    ids_NL: np.ndarray
    cot_NL: np.ndarray  # True at CoT tokens
    answer_NL: np.ndarray  # True at sampled answer tokens; prefilled words are in neither: they were not sampled
    lengths_N: np.ndarray


def lay_out(rollout: Rollout) -> Completions:
    """Every row's tokens in the order they were fed."""
    lines = []
    for row, answer in enumerate(rollout.answers):
        lines.append((rollout.cot(row), rollout.prefills[rollout.stops[row]], answer))
    lengths = np.array([sum(map(len, line)) for line in lines])
    ids = np.zeros((len(lines), lengths.max()), np.int64)
    cot, answers = np.zeros_like(ids, dtype=bool), np.zeros_like(ids, dtype=bool)
    for row, (thought, words, answer) in enumerate(lines):
        ids[row, : lengths[row]] = thought + words + answer
        cot[row, : len(thought)] = True
        answers[row, len(thought) + len(words) : lengths[row]] = True
    return Completions(ids, cot, answers, lengths)


def micro_batches(lengths: np.ndarray, rows: np.ndarray, prompt_width: int, budget: int) -> list[np.ndarray]:
    """Splits `rows`, longest first, so that rows x (prompt + longest completion) stays within `budget` tokens (one row
    at least)."""
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    batches = []
    while len(rows):
        size = max(1, budget // (prompt_width + int(lengths[rows[0]])))
        batches.append(rows[:size])
        rows = rows[size:]
    return batches


@dataclass
class Prompts:
    """Prompts that were run once, for their rows to go on from."""

    states: list[torch.Tensor]  # last hidden states (B, D), then keys and values of each layer
    mask_BP: torch.Tensor
    lengths_B: torch.Tensor

    def predictors(self, lm: LanguageModel, owner_n: torch.Tensor, embeds_nLD: torch.Tensor) -> torch.Tensor:
        """Runs rows with these inputs behind their prompts. Column t of the result, (n, L + 1, D), predicts token t."""
        rows, fed = embeds_nLD.shape[:2]
        layers = [
            SharedPromptLayer(k[owner_n], v[owner_n]) for k, v in zip(self.states[1::2], self.states[2::2], strict=True)
        ]
        causal = torch.ones(fed, fed, dtype=torch.bool, device=lm.device).tril().expand(rows, 1, -1, -1)
        mask = torch.cat([self.mask_BP[owner_n][:, None, None].expand(-1, 1, fed, -1), causal], -1)
        positions = self.lengths_B[owner_n][:, None] + torch.arange(fed, device=lm.device)
        states = lm.hidden(embeds_nLD, mask, positions, Cache(layers=list(layers)))
        return torch.cat([self.states[0][owner_n][:, None], states], 1)


def run_prompts(lm: LanguageModel, prompts: list[list[int]]) -> Prompts:
    last_BD, cache, mask, lengths = prefill(lm, prompts)
    return Prompts([last_BD, *(states for layer in cache.layers for states in layer_states(layer))], mask, lengths)


@dataclass
class Vocabulary:
    """What a pass needs of a model where the vocabulary appears: fp32 copies, or the weights themselves."""

    head_VD: torch.Tensor | Summed
    embedding_VD: torch.Tensor | Summed

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """head @ hidden in fp32, shape (M, V)."""
        return project(hidden_MD.float(), self.head_VD)


def trained_vocabulary(
    lm: LanguageModel, mixtures: bool, embedding_gradient: bool, gradients: Mapping[torch.Tensor, torch.Tensor]
) -> tuple[Vocabulary, dict[torch.Tensor, torch.Tensor]]:
    """Head and E of the model in training (`mixtures`: as `in_fp32`); and, by parameter, sums of gradients that remain
    to be handed over. There are none where fp32 gradients are given, or the parameter's own is one: those are added
    to."""
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


@dataclass
class TiledTerms:
    """The loss's terms, computed a tile of tokens at a time: the only place of the pass where the vocabulary appears.

    The gradients of `own` add up in fp32 whatever the working precision, and in place (`vocabulary_products.py`).
    """

    tokens: CotTokens
    rollout: Rollout
    completions: Completions
    settings: TrainingSettings
    weights_N: torch.Tensor  # -A / N; GRPO: also divided by the row's sampled tokens
    shares_N: torch.Tensor  # 1 / N, likewise: what bonus and KL term weigh
    own: Vocabulary
    base: Vocabulary | None  # of the reference, for the KL term
    statistics: PassStatistics

    def back_propagate(
        self,
        term: str,
        rows: np.ndarray,
        columns: np.ndarray,
        hidden_MD: torch.Tensor,
        base_MD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Adds the gradients of these tokens' terms of the loss, and returns that for `hidden_MD`, shape (M, D).
        `base_MD` are the reference's states at the same tokens."""
        hidden = hidden_MD.detach().requires_grad_()
        loss = self._loss(term, rows, columns, hidden, base_MD)
        if loss.requires_grad:
            loss.backward()
        # No gradient where fuzzy mixtures were single rows: a looked-up row does not depend on the logits.
        return torch.zeros_like(hidden) if hidden.grad is None else hidden.grad

    def _loss(
        self, term: str, rows: np.ndarray, columns: np.ndarray, hidden_MD: torch.Tensor, base_MD: torch.Tensor | None
    ) -> torch.Tensor:
        settings, at = self.settings, torch.from_numpy(rows).to(hidden_MD.device)
        soft, loss = term == "cot" and self.tokens.soft, torch.zeros((), device=hidden_MD.device)
        temperature = settings.answer_temperature if term == "answer" else self.tokens.mode.temperature
        logits = self.own.logits(hidden_MD)
        mixture = self._mixture(logits, self.own) if soft and self.tokens.mode.noise_at == "embedding" else None
        if term == "answer" or settings.cot_term:
            if soft:
                log_prob = self._soft(logits, mixture, hidden_MD, rows, columns)
            else:
                ids = torch.from_numpy(self.completions.ids_NL[rows, columns]).to(logits.device)
                log_prob = hard_log_prob(logits, ids, temperature)
            if self.rollout.old_log_prob_NL is None:
                loss = (self.weights_N[at] * log_prob).sum()
            else:
                loss = self._clipped(log_prob, at, torch.from_numpy(columns).to(logits.device))
        if term == "cot" and settings.entropy_bonus > 0:
            loss = loss - settings.entropy_bonus * (self.shares_N[at] * entropy(logits)).sum()
        if self.base is not None and base_MD is not None:
            base_logits = self.base.logits(base_MD)
            if mixture is None:
                kl = hard_kl(logits / temperature, base_logits / temperature)
            else:
                kl = gaussian_kl(mixture, self._mixture(base_logits, self.base), self.tokens.noise_std)
            loss = loss + settings.kl_coefficient * (self.shares_N[at] * kl).sum()
            self.statistics.kl += kl.sum().item()
            self.statistics.kl_tokens += len(rows)
        return loss

    def _mixture(self, logits_MV: torch.Tensor, of: Vocabulary) -> torch.Tensor:
        """h = p E, shape (M, D)."""
        mode = self.tokens.mode
        return mix(keep_top(logits_MV, mode.top_k), of.embedding_VD, mode.temperature)

    def _clipped(self, log_prob_M: torch.Tensor, rows_M: torch.Tensor, columns_M: torch.Tensor) -> torch.Tensor:
        """Loss of tokens by ratios to the log-probabilities that the first pass over the rollout found."""
        known = self.rollout.old_log_prob_NL
        assert known is not None
        old = known[rows_M, columns_M]
        old = torch.where(old.isnan(), log_prob_M.detach(), old)
        known[rows_M, columns_M] = old
        loss, beyond = clipped(log_prob_M, old, self.weights_N[rows_M], self.settings.clip_range)
        self.statistics.clipped += int(beyond.sum())
        self.statistics.ratios += len(beyond)
        return loss.sum()

    def _soft(
        self,
        logits_MV: torch.Tensor,
        mixture_MD: torch.Tensor | None,
        hidden_MD: torch.Tensor,
        rows: np.ndarray,
        columns: np.ndarray,
    ) -> torch.Tensor:
        """Log densities of the actions, (M,), wherever their noise is; looks at how well they are recomputed."""
        out, tokens, seen = self.rollout, self.tokens, self.statistics
        assert out.x_NTD is not None and out.mixture_NTD is not None, "the rollout was recorded"
        weighed, sigma = logits_MV.detach(), 1.0 if tokens.gumbel else tokens.noise_std
        if tokens.noise_on_logits:
            assert out.draws is not None, "the rollout was recorded"
            draw_MV = out.draws.again(rows, columns)
            log_density = tokens.logit_log_density(logits_MV, draw_MV)
            mean = weighed[:, : out.mixture_NTD.shape[2]]
            weighed = tokens.logit_action(keep_top(weighed, tokens.mode.top_k), draw_MV)
            squares = torch.exp(-gumbel(draw_MV)) if tokens.gumbel else draw_MV.square()  # both are 1 on average
        else:
            mean = hidden_MD.float() if mixture_MD is None else mixture_MD
            action = (out.x_NTD if out.action_NTD is None else out.action_NTD)[rows, columns].float()
            log_density = soft_log_density(action, mean, sigma)
            squares = ((action - mean.detach()) / sigma).square()
            if tokens.noise_on_hidden:
                weighed = self.own.logits(action.detach()).detach()
        ids = torch.from_numpy(self.completions.ids_NL[rows, columns]).to(logits_MV.device)
        with torch.no_grad():
            gap = (mean - out.mixture_NTD[rows, columns]).abs().max() / sigma
        seen.tokens += len(rows)
        if self.settings.stop_on == "shadow":  # elsewhere ids are nearest tokens
            seen.shadows += len(rows)
            seen.flips += int((weighed.argmax(-1) != ids).sum())
        seen.noise_square += squares.mean(-1).sum().item()
        seen.gap = max(seen.gap, gap.item())
        return log_density


def accumulate_gradients(
    lm: LanguageModel,
    tokens: CotTokens,
    rollout: Rollout,
    advantages_N: np.ndarray,
    settings: TrainingSettings,
    runtime: RuntimeSettings,
    terms: tuple[str, ...] = ("cot", "answer"),
    reference: LanguageModel | None = None,
    gradients: Mapping[torch.Tensor, torch.Tensor] | None = None,
) -> PassStatistics:
    """Adds the gradient of the loss to the `.grad` of the model's parameters; returns what it saw.

    `terms` restricts the loss to its CoT or its answer part; the parts' gradients add up to the whole's. `reference` is
    the frozen base, for the KL term. `gradients` are those that an optimizer keeps in fp32 by parameter: head's and E's
    are added to there. With several updates per step, the first pass notes its log-probabilities in `rollout`.
    """
    statistics = PassStatistics()
    rows = np.arange(len(advantages_N)) if settings.regularised else np.flatnonzero(advantages_N)
    terms = tuple(term for term in terms if term != "cot" or settings.cot_term or settings.regularised)
    if len(rows) == 0 or not terms:
        return statistics
    device, completions = lm.device, lay_out(rollout)
    if settings.updates_per_step > 1 and rollout.old_log_prob_NL is None:
        rollout.old_log_prob_NL = torch.full(completions.ids_NL.shape, torch.nan, device=device)

    # Leaves cut the graph behind the prompts: their gradients are summed up, and go on once, at the end.
    owners = np.unique(rows // rollout.samples)
    prompt_of_row = np.searchsorted(owners, np.arange(len(advantages_N)) // rollout.samples)
    asked = [rollout.prompts[b] for b in owners]
    prompts = run_prompts(lm, asked)
    roots = prompts.states
    prompts.states = leaves = [root.detach().requires_grad_(root.requires_grad) for root in roots]
    own, sums = trained_vocabulary(lm, tokens.mixes, settings.embedding_gradient, gradients or {})
    base, base_prompts = None, None
    if settings.kl_coefficient > 0:
        assert reference is not None, "a KL term needs the model to stay close to"
        with torch.no_grad():
            base_prompts = run_prompts(reference, asked)
            base = Vocabulary(*in_fp32(reference, tokens.mixes))

    sampled_N = (completions.cot_NL.sum(1) + completions.answer_NL.sum(1)) if settings.objective == "grpo" else 1
    weights_N, shares_N = (
        torch.as_tensor(values / len(advantages_N) / sampled_N, dtype=torch.float32, device=device)
        for values in (-advantages_N, np.ones(len(advantages_N)))
    )
    loss = TiledTerms(tokens, rollout, completions, settings, weights_N, shares_N, own, base, statistics)

    # The prompts' graph is there all the while; where they are long, rows get half of the tokens nevertheless.
    budget = max(runtime.micro_batch_tokens - prompts.mask_BP.numel(), runtime.micro_batch_tokens // 2)
    for batch in micro_batches(completions.lengths_N, rows, prompts.mask_BP.shape[1], budget):
        owner = torch.from_numpy(prompt_of_row[batch]).to(device)
        fed = int(completions.lengths_N[batch].max()) - 1  # the last token's state predicts nothing
        states = prompts.predictors(lm, owner, _inputs(lm, tokens, rollout, completions, batch, fed))
        base_states = None
        if base_prompts is not None and reference is not None:
            with torch.no_grad():
                inputs = _inputs(reference, tokens, rollout, completions, batch, fed)
                base_states = base_prompts.predictors(reference, owner, inputs)

        pieces, upstream = [], []
        for term, member_NL in (("cot", completions.cot_NL), ("answer", completions.answer_NL)):
            places = np.argwhere(member_NL[batch]) if term in terms else np.empty((0, 2), np.int64)
            for start in range(0, len(places), runtime.tile_tokens):
                row, column = places[start : start + runtime.tile_tokens].T
                at = torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)
                pieces.append(states[at])
                base_piece = None if base_states is None else base_states[at]
                upstream.append(loss.back_propagate(term, batch[row], column, pieces[-1], base_piece))
        torch.cat(pieces).backward(torch.cat(upstream).to(states.dtype))

    ends = [(root, leaf.grad) for root, leaf in zip(roots, leaves, strict=True) if leaf.grad is not None]
    ends += sums.items()
    torch.autograd.backward([root for root, _ in ends], [gradient.to(root.dtype) for root, gradient in ends])
    return statistics


def _inputs(
    lm: LanguageModel, tokens: CotTokens, rollout: Rollout, completions: Completions, batch: np.ndarray, length: int
) -> torch.Tensor:
    """What the rollout fed at the first `length` completion positions, (n, length, D): rows of E, and the recorded x at
    soft CoT tokens."""
    embeds = lm.embed(torch.from_numpy(completions.ids_NL[batch, :length]).to(lm.device))
    if not tokens.soft:
        return embeds
    assert rollout.x_NTD is not None, "the rollout was recorded"
    thinking = torch.from_numpy(completions.cot_NL[batch, :length]).to(lm.device)
    steps = min(length, rollout.x_NTD.shape[1])
    x = torch.zeros_like(embeds)
    x[:, :steps] = rollout.x_NTD[torch.from_numpy(batch).to(lm.device), :steps]
    return torch.where(thinking[..., None], x, embeds)
