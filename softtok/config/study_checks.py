"""Checks of studies: complete grids, and settings of runs that contradict each other.

Every function raises UserError, one line that names the key.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from itertools import product

from softtok.config.messages import at, config_error
from softtok.config.schema import DATA_SECTIONS, Block, Config, DataSet, Study
from softtok.config.settings import TokenMode, TrainingSettings


def check_study(config: Config, name: str, study: Study) -> None:
    """Checks a study, whose names are known to exist."""
    completeness(name, study)
    for block in study.blocks():
        vocabulary(config, name, block)
        pass_at_k(config, name, study, block)
        training(config, block)


def completeness(name: str, study: Study) -> None:
    """Each block must be a product of something."""
    for place, block in enumerate(study.blocks()):
        where = at("studies", name, "grid", place) if study.grid else at("studies", name)
        if not block.models:
            raise config_error(f"{where}.models", "this list is missing or empty")
        trained = {"train_sets": block.train_sets, "training_modes": block.training_modes, "seeds": block.seeds}
        empty = [key for key, value in trained.items() if not value]
        if 0 < len(empty) < len(trained):
            raise config_error(
                f"{where}.{empty[0]}",
                f"this list is missing or empty; leave out all of {', '.join(trained)} for base models alone",
            )
        if not block.test_sets and not block.choice_sets:
            raise config_error(
                f"{where}.test_sets", "this list is missing or empty, and so is choice_sets: nothing would be measured"
            )
        if block.test_sets and not block.inference_sets:
            raise config_error(
                f"{where}.inference_sets", "this list is missing or empty; it says how the test sets are answered"
            )


def vocabulary(config: Config, study: str, block: Block) -> None:
    """A toy whose tokenizer knows only the words of the toy problems can read nothing else."""
    word_models = [
        model for model in block.models or [] if (toy := config.models[model].toy) and toy.tokenizer == "words"
    ]
    other_sets = [
        (section, data_set)
        for section in DATA_SECTIONS.values()
        for data_set in getattr(block, section) or []
        if getattr(config, section)[data_set].toy is None
    ]
    for model, (section, data_set) in product(word_models, other_sets):
        raise config_error(
            f"{at('studies', study)}.{section}",
            f"model {model!r} knows the words of toy problems only, and {data_set!r} has others;"
            " take a model with toy: {tokenizer: bpe}, such as toy-bpe, or a real one",
        )


def pass_at_k(config: Config, name: str, study: Study, block: Block) -> None:
    """pass@k cannot be estimated from fewer than k samples."""
    for mode in (mode for modes in block.inference_sets or [] for mode in config.inference_sets[modes]):
        samples = config.inference_modes[mode].samples
        if study.k and 1 < samples < max(study.k):
            raise config_error(
                at("studies", name, "k"),
                f"pass@{max(study.k)} needs {max(study.k)} samples; inference mode {mode!r} has samples: {samples}",
            )


def training(config: Config, block: Block) -> None:
    """Checks the resolved settings of each run of a block."""
    for model, train_set, mode in product(block.models or [], block.train_sets or [], block.training_modes or []):
        settings, tokens = config.training_of(model, train_set, mode), config.training_modes[mode]
        where = at("training_modes", mode)
        if tokens.deterministic and settings.cot_term:
            key, why = ("temperature", "argmax") if tokens.hard else ("noise_scale", "no noise")
            raise config_error(
                f"{where}.{key}",
                f"0 means {why}, so CoT tokens have no log-probability to learn from;"
                " raise it, or set training: {cot_term: false}",
            )
        if settings.warmup_steps > settings.steps:
            raise config_error(
                at("models", model, "training", "warmup_steps"),
                f"{settings.warmup_steps} steps of warm-up in {settings.steps} steps: the learning rate would never"
                " be reached",
            )
        _inference_only(where, tokens)
        _no_effect(where, tokens, config.training_modes[mode].training.given())
        _importance_ratios(where, settings, tokens)
        _kl(where, settings, tokens)
        _checkpoint_steps(where, settings)
        rows, held_out = most_rows(config.train_sets[train_set]), settings.validation_problems
        if rows < held_out + settings.prompts_per_step:
            raise config_error(
                at("train_sets", train_set),
                f"{rows} problems are too few for validation_problems: {held_out} and steps of"
                f" {settings.prompts_per_step} prompts (with model {model!r} and mode {mode!r})",
            )


def _inference_only(where: str, tokens: TokenMode) -> None:
    for key in ("inputs_beta", "end_entropy"):
        if getattr(tokens, key) is not None:
            raise config_error(f"{where}.{key}", "is for inference only; move it to an inference mode")


def _no_effect(where: str, tokens: TokenMode, written: Collection[str]) -> None:
    """Refuses training settings, written at a token mode, that have no effect in it."""
    for key, what in _without_effect(tokens):
        if key in written:
            raise config_error(f"{where}.training.{key}", f"has no effect on {what}; remove it")


def _without_effect(tokens: TokenMode) -> Iterator[tuple[str, str]]:
    """Yields the training settings that change nothing in this mode, and on what they have no effect."""
    if tokens.hard:
        yield from ((key, "hard tokens") for key in ("stop_on", "embedding_gradient"))
    elif tokens.noise_at != "embedding":
        yield "embedding_gradient", f"a mixture after noise on the {tokens.noise_at}, which is a constant"


def _importance_ratios(where: str, settings: TrainingSettings, tokens: TokenMode) -> None:
    """Objectives with importance ratios need tokens whose ratios can be trusted."""
    key = f"{where}.training.objective"
    if settings.objective in ("grpo", "ppo-clip") and tokens.tokens == "soft" and settings.cot_term:
        raise config_error(
            key,
            f"{settings.objective!r} forms importance ratios, and those of soft CoT tokens are unsound (one rounding"
            " error can be worth thousands of nats); use rloo, hard tokens or cot_term: false",
        )
    if settings.objective == "rloo" and settings.updates_per_step > 1:
        raise config_error(
            key, "'rloo' has no ratios to correct a second update; use ppo-clip or set updates_per_step: 1"
        )


def _kl(where: str, settings: TrainingSettings, tokens: TokenMode) -> None:
    """The KL to the base model must exist and be finite."""
    key = f"{where}.training.kl_coefficient"
    if settings.kl_coefficient == 0:
        return
    if tokens.hard and tokens.temperature == 0:
        raise config_error(key, "the KL of argmax tokens to the base is infinite; raise the mode's temperature")
    if tokens.tokens == "soft" and (tokens.noise_scale == 0 or tokens.noise_at != "embedding"):
        raise config_error(
            key, "is defined for hard tokens and for soft ones with Gaussian noise on the embedding, not here"
        )


def _checkpoint_steps(where: str, settings: TrainingSettings) -> None:
    """At least one validation must fall in the range of steps whose checkpoints compete."""
    if settings.checkpoint_steps is None:
        return
    first, last = settings.checkpoint_steps
    validated = {*range(settings.validate_every, settings.steps + 1, settings.validate_every), settings.steps}
    if not any(first <= step <= last for step in validated):
        raise config_error(
            f"{where}.training.checkpoint_steps",
            f"no validation falls in {settings.checkpoint_steps} with validate_every: {settings.validate_every}"
            f" and steps: {settings.steps}",
        )


def most_rows(entry: DataSet) -> float:
    """Returns the most problems that the set can have, as far as the configuration says."""
    return min(entry.limit or math.inf, entry.toy.problems if entry.toy else math.inf)
