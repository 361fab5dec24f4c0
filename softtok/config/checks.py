"""What pydantic cannot see: names that must exist, settings that contradict each other across entries, paths on this
machine.

Snakemake swallows errors of input functions where the output exists already, so all of this is checked when the
Snakefile is parsed (`config.load`). Every function raises UserError, one line that names the key.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Literal

from softtok import plugins
from softtok.config import doors
from softtok.config.messages import at, mistake, nearest
from softtok.config.paper_results import printed_lines
from softtok.config.schema import Block, Config, DataSet, OpenSet, Study
from softtok.config.settings import RuntimeSettings, TokenMode, TrainingSettings
from softtok.errors import UserError
from softtok.problems import adapter, own_reward

SECTIONS = {
    "models": "model",
    "train_sets": "train set",
    "test_sets": "test set",
    "choice_sets": "choice set",
    "training_modes": "training mode",
    "inference_modes": "inference mode",
    "inference_sets": "inference set",
    "studies": "study",
}
RULES = ("all", "dataset", "model", "base", "train", "evaluate", "choices", "report_spec", "report")
FOLDERS = ("results", "models", "data", "runs", "reports", "specs", "logs", "benchmarks")
PARTS_OF_PATHS = ("test", "choice", "none", "eval")
RESERVED = frozenset(RULES + FOLDERS + PARTS_OF_PATHS)
"""Names with a meaning in paths (`none` and `base` are train set and mode of untouched models) or as Snakemake
targets."""
FIELDS = {"train": ("question", "gold"), "test": ("question", "gold"), "choice": ("question", "choices", "answer")}
DATA_SECTIONS: dict[Literal["train", "test", "choice"], str] = {
    "train": "train_sets",
    "test": "test_sets",
    "choice": "choice_sets",
}
PAPER_COLUMNS = {
    "models": ("model",), "train_sets": ("train_set",), "test_sets": ("test_set",), "choice_sets": ("test_set",),
    "training_modes": ("training_mode", "variant"), "inference_modes": ("inference_mode",),
}  # fmt: skip
"""Where paper.csv has the names that entries of a section may carry under `paper:`."""


def check(config: Config, requested: Sequence[str]) -> None:
    """`requested`: studies whose models and data files must be there."""
    names(config)
    references(config)
    paper_names(config)
    for name in config.models:
        machine(config.runtime_of(name), at("models", name, "runtime"))
    for kind, section in DATA_SECTIONS.items():
        for name, entry in getattr(config, section).items():
            data_fields(config, kind, at(section, name), entry)
            plug_ins(config, at(section, name), entry)
    own_code(config)
    for name, study in config.studies.items():
        completeness(name, study)
        vocabulary(config, name, study)
        pass_at_k(config, name, study)
        training(config, study)
    paths(config, requested)


def names(config: Config) -> None:
    """Reserved names, and names that would share a path where upper and lower case are one."""
    for section in SECTIONS:
        met: dict[str, str] = {}
        for name in getattr(config, section):
            folded = name.casefold()
            if folded in RESERVED:
                raise mistake(
                    at(section, name),
                    f"the name {name!r} is reserved (a rule or a folder of the workflow); choose another",
                )
            if folded in met:
                raise mistake(
                    at(section, name), f"{name!r} and {met[folded]!r} differ in letter case only and would share a path"
                )
            met[folded] = name


def references(config: Config) -> None:
    """Every name in a list must be that of an entry, and stand there once."""
    refer(config, "studies", config.run, at("run"))
    for name, modes in config.inference_sets.items():
        refer(config, "inference_modes", modes, at("inference_sets", name))
    for name, train_set in config.train_sets.items():
        refer(config, "test_sets", train_set.exclude, at("train_sets", name, "exclude"))
    for name, model in config.models.items():
        if model.toy and model.toy.text is not None:
            refer(config, "train_sets", [model.toy.text], at("models", name, "toy", "text"))
    for name, study in config.studies.items():
        parts: list[tuple[str, Block]] = [(at("studies", name), study)]
        parts += [(at("studies", name, "grid", place), block) for place, block in enumerate(study.grid or [])]
        for where, part in parts:
            for section in Block.model_fields:
                listed = getattr(part, section) or []
                if section == "seeds":
                    once(listed, f"{where}.seeds")
                else:
                    refer(config, section, listed, f"{where}.{section}")
        used = sorted({mode for block in study.blocks() for mode in block.training_modes or []})
        for mode in study.paper:
            if mode not in used:
                raise mistake(
                    at("studies", name, "paper", mode), f"this study has no such training mode{nearest(mode, used)}"
                )


def paper_names(config: Config) -> None:
    """A name under `paper:` that the paper's results do not have would be compared with nothing, and nobody told."""
    for section, columns in PAPER_COLUMNS.items():
        known = dict.fromkeys(" ".join(cell[column] for column in columns).strip() for cell in printed_lines())
        given = {at(section, name, "paper"): entry.paper for name, entry in getattr(config, section).items()}
        if section == "training_modes":
            given |= {
                at("studies", study, "paper", mode): name
                for study, settings in config.studies.items()
                for mode, name in settings.paper.items()
            }
        for where, name in given.items():
            if name is not None and name not in known:
                raise mistake(where, f"the paper's results have no {name!r}{nearest(name, filter(None, known))}")


def machine(runtime: RuntimeSettings, where: str) -> None:
    """GPUs are handed out by their number: a job that takes one without asking would share it with another."""
    if runtime.device.startswith("cuda") and not runtime.gpus:
        raise mistake(f"{where}.gpus", f"device: {runtime.device} needs gpus: 1, by which jobs on GPUs are counted")


def refer(config: Config, section: str, listed: Sequence[str], where: str) -> None:
    known = getattr(config, section)
    for name in listed:
        if name not in known:
            raise mistake(where, f"there is no {SECTIONS[section]} {name!r}{nearest(name, known)}")
    once(listed, where)


def once(listed: Sequence[str | int], where: str) -> None:
    for place, item in enumerate(listed):
        if item in listed[:place]:
            raise mistake(where, f"{item!r} is listed twice")


def data_fields(config: Config, kind: Literal["train", "test", "choice"], where: str, entry: DataSet) -> None:
    """A data set must say where question and answer stand, for each source that it has, and nothing that has no use."""
    wrong = set(entry.model_fields_set) & ({"choices", "answer"} if kind != "choice" else {"gold"})
    if wrong:
        raise mistake(f"{where}.{min(wrong)}", f"has no use in a {kind} set, which needs {' and '.join(FIELDS[kind])}")
    if entry.toy is not None:
        if (entry.toy.task == "choice") != (kind == "choice"):
            raise mistake(
                f"{where}.toy.task", f"{entry.toy.task!r} makes no {kind} set; choice sets take 'choice', others 'sums'"
            )
        if kind == "choice" and "steps" in entry.toy.model_fields_set:
            raise mistake(f"{where}.toy.steps", "has no use in a choice set, whose questions have no steps")
        if useless := entry.fields("toy"):
            raise mistake(f"{where}.{min(useless)}", "has no use beside `toy`, whose fields are known")
    sources: tuple[Literal["hub", "file"], ...] = ("hub", "file")
    for source in sources:
        mapped = set(entry.fields(source)) - {"id"} if getattr(entry, source) is not None else set()
        if entry.adapter is not None and mapped:
            raise mistake(f"{where}.{min(mapped)}", "has no use beside `adapter`, which makes all columns")
        if getattr(entry, source) is not None and entry.adapter is None:
            missing = [name for name in FIELDS[kind] if name not in entry.fields(source)]
            if missing:
                raise mistake(
                    f"{where}.{missing[0]}",
                    f"this key is missing: which field of the {source} source holds the {missing[0]}?",
                )


def plug_ins(config: Config, where: str, entry: DataSet) -> None:
    """Code of the user's own must be there, with the right arguments; what it does is seen by `softtok check`."""
    doors.locate(adapter.DOOR, entry.adapter, config, f"{where}.adapter")
    if isinstance(entry, OpenSet):
        doors.locate(own_reward.DOOR, entry.reward, config, f"{where}.reward")
        if entry.solved_at is not None and not plugins.is_plugin(entry.reward):
            raise mistake(f"{where}.solved_at", f"has no use with reward: {entry.reward}, which gives no numbers")


def own_code(config: Config) -> None:
    """Token modes, objectives and figures of the user's own must be there, with the right methods or arguments."""
    for section in ("training_modes", "inference_modes"):
        for name, mode in getattr(config, section).items():
            doors.locate(doors.TOKENS, mode.tokens, config, at(section, name, "tokens"))
    doors.locate(doors.OBJECTIVE, config.training.objective, config, "training.objective")
    for section in ("models", "train_sets", "training_modes"):
        for name, entry in getattr(config, section).items():
            doors.locate(doors.OBJECTIVE, entry.training.objective, config, at(section, name, "training", "objective"))
    for name, study in config.studies.items():
        for place, choice in enumerate(study.figures):
            doors.locate(doors.FIGURES, choice, config, at("studies", name, "figures", place))


def completeness(name: str, study: Study) -> None:
    """Each block must be a product of something."""
    for place, block in enumerate(study.blocks()):
        where = at("studies", name, "grid", place) if study.grid else at("studies", name)
        if not block.models:
            raise mistake(f"{where}.models", "this list is missing or empty")
        trained = {"train_sets": block.train_sets, "training_modes": block.training_modes, "seeds": block.seeds}
        empty = [key for key, value in trained.items() if not value]
        if 0 < len(empty) < len(trained):
            raise mistake(
                f"{where}.{empty[0]}",
                f"this list is missing or empty; leave out all of {', '.join(trained)} for base models alone",
            )
        if not block.test_sets and not block.choice_sets:
            raise mistake(
                f"{where}.test_sets", "this list is missing or empty, and so is choice_sets: nothing would be measured"
            )
        if block.test_sets and not block.inference_sets:
            raise mistake(
                f"{where}.inference_sets", "this list is missing or empty; it says how the test sets are answered"
            )


def vocabulary(config: Config, name: str, study: Study) -> None:
    """A toy whose tokenizer knows the toy problems' words reads nothing else."""
    for block in study.blocks():
        for model in block.models or []:
            toy = config.models[model].toy
            if toy is None or toy.tokenizer != "words":
                continue
            for section in DATA_SECTIONS.values():
                for data_set in getattr(block, section) or []:
                    if getattr(config, section)[data_set].toy is None:
                        raise mistake(
                            f"{at('studies', name)}.{section}",
                            f"model {model!r} knows the words of toy problems only, and {data_set!r} has others;"
                            " take a model with toy: {tokenizer: bpe}, such as toy-bpe, or a real one",
                        )


def pass_at_k(config: Config, name: str, study: Study) -> None:
    """pass@k cannot be estimated from fewer than k samples."""
    for block in study.blocks():
        for mode in (
            mode for inference_set in block.inference_sets or [] for mode in config.inference_sets[inference_set]
        ):
            samples = config.inference_modes[mode].samples
            if study.k and 1 < samples < max(study.k):
                raise mistake(
                    at("studies", name, "k"),
                    f"pass@{max(study.k)} needs {max(study.k)} samples; inference mode {mode!r} has samples: {samples}",
                )


def training(config: Config, study: Study) -> None:
    """Contradictions in the resolved settings of the study's runs."""
    for block in study.blocks():
        for model, train_set, mode in product(block.models or [], block.train_sets or [], block.training_modes or []):
            settings, tokens = config.training_of(model, train_set, mode), config.training_modes[mode]
            if tokens.deterministic and settings.cot_term:
                key, why = ("temperature", "argmax") if tokens.hard else ("noise_scale", "no noise")
                raise mistake(
                    at("training_modes", mode, key),
                    f"0 means {why}, so CoT tokens have no log-probability to learn from;"
                    " raise it, or set training: {cot_term: false}",
                )
            if settings.warmup_steps > settings.steps:
                raise mistake(
                    at("models", model, "training", "warmup_steps"),
                    f"{settings.warmup_steps} steps of warm-up in {settings.steps} steps: the learning rate would never"
                    " be reached",
                )
            own = config.training_modes[mode].training.given()
            objective(at("training_modes", mode), settings, tokens, own)
            rows, held_out = most_rows(config.train_sets[train_set]), settings.validation_problems
            if rows < held_out + settings.prompts_per_step:
                raise mistake(
                    at("train_sets", train_set),
                    f"{rows} problems are too few for validation_problems: {held_out} and steps of"
                    f" {settings.prompts_per_step} prompts (with model {model!r} and mode {mode!r})",
                )


def useless(tokens: TokenMode) -> list[tuple[str, str]]:
    """Training settings that change nothing in this mode, and why."""
    if tokens.hard:
        return [(key, "hard tokens") for key in ("stop_on", "embedding_gradient")]
    if tokens.noise_at != "embedding":
        return [("embedding_gradient", f"a mixture behind noise on the {tokens.noise_at}, which is a constant")]
    return []


def objective(where: str, settings: TrainingSettings, tokens: TokenMode, own: Collection[str]) -> None:
    """Objectives and token modes that do not go together; `settings` are those of a run, with all overrides, `own` the
    names of the mode's.
    """
    for key in ("inputs_beta", "end_entropy"):
        if getattr(tokens, key) is not None:
            raise mistake(f"{where}.{key}", "is for inference only; move it to an inference mode")
    ratios = f"{where}.training.objective"
    for key, what in useless(tokens):
        if key in own:
            raise mistake(f"{where}.training.{key}", f"does nothing to {what}; remove it")
    if settings.objective in ("grpo", "ppo-clip") and tokens.tokens == "soft" and settings.cot_term:
        raise mistake(
            ratios,
            f"{settings.objective!r} forms importance ratios, and those of soft CoT tokens are unsound (one rounding"
            " error can be worth thousands of nats); use rloo, hard tokens or cot_term: false",
        )
    if settings.objective == "rloo" and settings.updates_per_step > 1:
        raise mistake(ratios, "'rloo' has no ratios to correct a second update by; use ppo-clip or updates_per_step: 1")
    if settings.kl_coefficient > 0:
        key = f"{where}.training.kl_coefficient"
        if tokens.hard and tokens.temperature == 0:
            raise mistake(key, "the KL of argmax tokens to the base is infinite; raise the mode's temperature")
        if tokens.tokens == "soft" and (tokens.noise_scale == 0 or tokens.noise_at != "embedding"):
            raise mistake(
                key, "is defined for hard tokens and for soft ones with Gaussian noise on the embedding, not here"
            )
    if settings.checkpoint_steps is not None:
        first, last = settings.checkpoint_steps
        validated = {*range(settings.validate_every, settings.steps + 1, settings.validate_every), settings.steps}
        if not any(first <= step <= last for step in validated):
            raise mistake(
                f"{where}.training.checkpoint_steps",
                f"no validation falls in {settings.checkpoint_steps} with validate_every: {settings.validate_every}"
                f" and steps: {settings.steps}",
            )


def most_rows(entry: DataSet) -> float:
    """As many problems as the set can have, as far as the configuration tells."""
    return min(entry.limit or math.inf, entry.toy.problems if entry.toy else math.inf)


def paths(config: Config, requested: Sequence[str]) -> None:
    """Folders and files that jobs of these studies read must be there."""
    models = {name for study in requested for block in config.studies[study].blocks() for name in block.models or []}
    for name, model in config.models.items():
        if name in models and model.path is not None and not (Path(model.path).expanduser() / "config.json").is_file():
            lack = "holds no config.json" if Path(model.path).expanduser().is_dir() else "does not exist"
            raise mistake(
                at("models", name, "path"), f"the folder {model.path!r} {lack}; a Hugging Face folder is needed"
            )
    if config.data_root is not None and not Path(config.data_root).is_dir():
        raise mistake("data_root", f"the folder {config.data_root!r} does not exist")
    for kind, section in DATA_SECTIONS.items():
        used = wanted(config, requested, kind)
        for name, entry in getattr(config, section).items():
            source = entry.source(config.data_root)
            if name in used and source == "hub" and config.data_root is not None:
                raise mistake(
                    at(section, name, "file"),
                    "this key is missing: with data_root, every data set is read from local files",
                )
            if source == "file" and name in used:
                try:
                    entry.file.found(config.data_root)
                except UserError as error:
                    raise mistake(at(section, name, "file", "path"), str(error)) from None


def wanted(config: Config, studies: Iterable[str], kind: Literal["train", "test", "choice"]) -> Collection[str]:
    """Data sets of a kind that the jobs of these studies read."""
    blocks = [block for study in studies for block in config.studies[study].blocks()]
    names = {name for block in blocks for name in getattr(block, DATA_SECTIONS[kind]) or []}
    texts = {
        toy.text for block in blocks for model in block.models or [] if (toy := config.models[model].toy) and toy.text
    }
    trained = {name for block in blocks for name in block.train_sets or []} | texts
    if kind == "train":
        return trained
    if kind == "test":
        return names | {name for train_set in trained for name in config.train_sets[train_set].exclude}
    return names
