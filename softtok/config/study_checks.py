"""Checks of studies: complete grids, and settings of runs that contradict each other.

Every function raises UserError, one line that names the key.
"""

from __future__ import annotations

import math
from itertools import product

from softtok.config.messages import at, config_error
from softtok.config.schema import DATA_SECTIONS, Block, Config, DataSet, Study
from softtok.config.settings import TokenMode, TrainingSettings

MOST_JOBS = 50_000


def check_studies(config: Config) -> None:
    """Checks all studies, whose names are known to exist."""
    jobs = 0
    for name, study in config.studies.items():
        jobs += sum(jobs_of(config, block) for block in study.blocks())
        if jobs > MOST_JOBS:
            raise config_error(
                at("studies", name), f"with this study there would be more than {MOST_JOBS:,} jobs; shorten its lists"
            )
    for name, study in config.studies.items():
        completeness(name, study)
        used_lists(name, study)
        pass_at_k(config, name, study)
        for block in study.blocks():
            vocabulary(config, name, block)
            answering(config, block)
            training(config, block)


def jobs_of(config: Config, block: Block) -> int:
    """Returns the number of jobs of a block; an evaluation counts its modes."""
    models, train_sets, modes, seeds, test_sets, choice_sets, inference_sets = (
        getattr(block, name) or [] for name in Block.model_fields
    )
    runs = len(models) * (1 + len(train_sets) * len(modes) * len(seeds))
    answered = len(test_sets) * sum(len(config.inference_sets[name]) for name in inference_sets)
    return runs * (1 + len(test_sets) * len(inference_sets) + len(choice_sets)) + answered


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


def used_lists(name: str, study: Study) -> None:
    """Every list of a study must belong to a block, and inference sets to test sets."""
    for section in Block.model_fields:
        blocks = study.grid or []
        if getattr(study, section) and blocks and all(getattr(block, section) is not None for block in blocks):
            raise config_error(at("studies", name, section), "has no effect: every block of the grid has its own list")
    if not any(block.test_sets for block in study.blocks()):
        for section in ("inference_sets", "k"):
            if getattr(study, section):
                raise config_error(at("studies", name, section), "has no effect in a study without test_sets")


def pass_at_k(config: Config, name: str, study: Study) -> None:
    """pass@k cannot be estimated from fewer than k samples."""
    sets = dict.fromkeys(modes for block in study.blocks() for modes in block.inference_sets or [])
    samples = {mode: config.inference_modes[mode].samples for modes in sets for mode in config.inference_sets[modes]}
    where = at("studies", name, "k")
    if study.k is None or not samples:
        return
    if len(set(study.k)) < len(study.k):
        raise config_error(where, f"{study.k} names a k twice")
    most = max(samples, key=lambda mode: samples[mode])
    if max(study.k) > samples[most]:
        raise config_error(
            where,
            f"pass@{max(study.k)} needs {max(study.k)} samples; inference mode {most!r} has samples: {samples[most]}"
            + (", and no mode of this study has more" if len(samples) > 1 else ""),
        )


def answering(config: Config, block: Block) -> None:
    """A CoT must be long enough for the steps after which a low entropy ends it, and top_k must leave tokens out."""
    modes = dict.fromkeys(mode for modes in block.inference_sets or [] for mode in config.inference_sets[modes])
    for test_set, mode in product(block.test_sets or [], modes):
        settings, most = config.inference_modes[mode], config.evaluation_of(test_set).max_cot_tokens
        if settings.end_entropy is not None and settings.end_entropy_steps > most:
            raise config_error(
                at("inference_modes", mode, "end_entropy_steps"),
                f"{settings.end_entropy_steps} steps do not fit into max_cot_tokens: {most} of test set {test_set!r},"
                " so end_entropy would have no effect",
            )
    for model, mode in product(block.models or [], modes):
        _top_k(config, model, at("inference_modes", mode), config.inference_modes[mode])


def training(config: Config, block: Block) -> None:
    """Checks the resolved settings of each run of a block."""
    for model, train_set, mode in product(block.models or [], block.train_sets or [], block.training_modes or []):
        settings, tokens = config.training_of(model, train_set, mode), config.training_modes[mode]
        where = at("training_modes", mode)
        for key in tokens.inference_only():
            raise config_error(f"{where}.{key}", "is for inference only; move it to an inference mode")
        _pathwise(where, settings, tokens)
        for key, why in tokens.not_trained() if settings.cot_term else ():
            raise config_error(f"{where}.{key}", f"{why}; raise it, or set training: {{cot_term: false}}")
        for key, what in (*tokens.without_effect(settings), *settings.without_effect()):
            if key in config.training_modes[mode].training.given():
                raise config_error(f"{where}.training.{key}", f"has no effect on {what}; remove it")
        _objective(where, settings, tokens)
        if settings.kl_coefficient > 0 and (why_not := tokens.no_kl()) is not None:
            raise config_error(f"{where}.training.kl_coefficient", why_not)
        _top_k(config, model, where, tokens)
        _rewards(model, train_set, settings)
        _checkpoint_steps(where, settings)
        _lengths(config, (model, train_set, mode), settings)


def _lengths(config: Config, run: tuple[str, str, str], settings: TrainingSettings) -> None:
    """A run must be longer than its warm-up, and its train set must suffice for a step and the validation."""
    model, train_set, mode = run
    if settings.warmup_steps > settings.steps:
        raise config_error(
            at("models", model, "training", "warmup_steps"),
            f"{settings.warmup_steps} steps of warm-up in {settings.steps} steps: the learning rate would never"
            " be reached",
        )
    rows, held_out = most_rows(config.train_sets[train_set]), settings.validation_problems
    if rows < held_out + settings.prompts_per_step:
        raise config_error(
            at("train_sets", train_set),
            f"{rows} problems are too few for validation_problems: {held_out} and steps of"
            f" {settings.prompts_per_step} prompts (with model {model!r} and mode {mode!r})",
        )


def _top_k(config: Config, model: str, where: str, tokens: TokenMode) -> None:
    """top_k must leave tokens out."""
    toy = config.models[model].toy
    if tokens.top_k is not None and toy is not None and toy.tokenizer == "bpe" and tokens.top_k >= toy.vocabulary:
        raise config_error(
            f"{where}.top_k", f"{tokens.top_k} leaves no token out: model {model!r} has vocabulary: {toy.vocabulary}"
        )


def _rewards(model: str, train_set: str, settings: TrainingSettings) -> None:
    """A right answer must be worth more than a wrong one."""
    if settings.reward_boxed >= settings.reward_correct:
        raise config_error(
            "training.reward_boxed",
            f"a wrong answer would get {settings.reward_boxed:g} and a right one reward_correct:"
            f" {settings.reward_correct:g} (model {model!r}, train set {train_set!r}); set both",
        )


def _objective(where: str, settings: TrainingSettings, tokens: TokenMode) -> None:
    """Objectives with importance ratios need tokens whose ratios can be trusted."""
    key = f"{where}.training.objective"
    if settings.forms_ratios and settings.cot_term and not tokens.sound_ratios:
        raise config_error(
            key,
            f"{settings.objective!r} forms importance ratios, and those of soft CoT tokens are unsound (one rounding"
            " error can be worth thousands of nats); use rloo, hard tokens or cot_term: false",
        )
    if settings.objective == "rloo" and settings.updates_per_step > 1:
        raise config_error(
            key, "'rloo' has no ratios to correct a second update; use ppo-clip or set updates_per_step: 1"
        )


def _pathwise(where: str, settings: TrainingSettings, tokens: TokenMode) -> None:
    """The gradient through a CoT needs noise that is reparametrised, and the plain objective."""
    if settings.estimator != "pathwise":
        return
    key = f"{where}.training.estimator"
    for name, why in tokens.no_path():
        raise config_error(
            key, f"pathwise needs soft CoT tokens with noise; {name}: {why}; set estimator: score, or change {name}"
        )
    for name, value, wanted in settings.beside_pathwise():
        raise config_error(
            key, f"pathwise is for {name}: {wanted}, not {value}; set estimator: score, or {name}: {wanted}"
        )


def _checkpoint_steps(where: str, settings: TrainingSettings) -> None:
    """At least one validation must fall in the range of steps whose checkpoints compete."""
    if settings.checkpoint_steps is None:
        return
    first, last = settings.checkpoint_steps
    every = settings.validate_every
    validated = last // every * every if last < settings.steps else settings.steps  # the last one up to `last`
    if not first <= validated:
        raise config_error(
            f"{where}.training.checkpoint_steps",
            f"no validation falls in {settings.checkpoint_steps} with validate_every: {settings.validate_every}"
            f" and steps: {settings.steps}",
        )


def most_rows(entry: DataSet) -> float:
    """Returns the most problems that the set can have, as far as the configuration says."""
    return min(entry.limit or math.inf, entry.toy.problems if entry.toy else math.inf)
