"""Checks that pydantic cannot do: names that must exist, fields of data sets, plug-ins, paths on this machine.

Snakemake hides errors of input functions if the output exists already. So everything is checked when the Snakefile is
parsed (`config.load`). Every function raises UserError, one line that names the key.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from softtok import plugins
from softtok.config import doors
from softtok.config.first_rows import check_first_rows
from softtok.config.gguf_files import gguf_file, refuse_without_reader
from softtok.config.messages import at, config_error, nearest, shown
from softtok.config.paper_results import printed_lines
from softtok.config.prompt_checks import check_prompts, of_blocks, taken_train_sets
from softtok.config.schema import DATA_SECTIONS, Block, Config, DataSet, Gguf, OpenSet
from softtok.config.settings import RuntimeSettings
from softtok.config.study_checks import check_studies
from softtok.errors import UserError
from softtok.plugins import Door, Reference
from softtok.problems import adapter, own_reward
from softtok.problems.spec import Kind

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
LONGEST_PATH = 300
RESERVED = frozenset(RULES + FOLDERS + PARTS_OF_PATHS)
"""Names with a meaning in paths (`none` and `base` are train set and mode of base models) or as Snakemake targets."""
FIELDS = {"train": ("question", "gold"), "test": ("question", "gold"), "choice": ("question", "choices", "answer")}
NO_USE: dict[Kind, set[str]] = {
    "train": {"choices", "answer"},
    "test": {"choices", "answer", "worked"},
    "choice": {"gold", "story", "worked"},
}
PAPER_COLUMNS = {
    "models": ("model",),
    "train_sets": ("train_set",),
    "test_sets": ("test_set",),
    "choice_sets": ("test_set",),
    "training_modes": ("training_mode", "variant"),
    "inference_modes": ("inference_mode",),
}
"""The columns of paper.csv with the names that entries of a section may have under `paper:`."""


def check(config: Config, requested: Sequence[str]) -> None:
    """Checks a configuration; the models and data files of the studies `requested` must exist."""
    names(config)
    references(config)
    paper_names(config)
    for name in config.models:
        machine(config.runtime_of(name), at("models", name, "runtime"))
    for kind, section in DATA_SECTIONS.items():
        for name, entry in getattr(config, section).items():
            data_fields(kind, at(section, name), entry)
            named(at(section, name), entry)
            plug_ins(config, at(section, name), entry)
    own_code(config)
    check_prompts(config)
    check_studies(config)
    paths(config, requested)


def names(config: Config) -> None:
    """Refuses reserved names, and names that would share a path if a file system ignores case."""
    for section in SECTIONS:
        met: dict[str, str] = {}
        for name in getattr(config, section):
            folded = name.casefold()
            if folded in RESERVED:
                raise config_error(
                    at(section, name),
                    f"the name {name!r} is reserved (a rule or a folder of the workflow); choose another",
                )
            if folded in met:
                raise config_error(
                    at(section, name), f"{name!r} and {met[folded]!r} differ in letter case only and would share a path"
                )
            met[folded] = name


def references(config: Config) -> None:
    """Every name in a list must be that of an entry, and be listed once."""
    refer(config, "studies", config.run, at("run"))
    for name, modes in config.inference_sets.items():
        refer(config, "inference_modes", modes, at("inference_sets", name))
    for name, train_set in config.train_sets.items():
        refer(config, "test_sets", train_set.exclude, at("train_sets", name, "exclude"))
    for where, name in taken_train_sets(config):
        refer(config, "train_sets", [name], where)
    for name, study in config.studies.items():
        block_references(config, at("studies", name), study)
        for place, block in enumerate(study.grid or []):
            block_references(config, at("studies", name, "grid", place), block)
        used = sorted({mode for block in study.blocks() for mode in block.training_modes or []})
        if strange := [mode for mode in study.paper if mode not in used]:
            raise config_error(
                at("studies", name, "paper", strange[0]),
                f"this study has no such training mode{nearest(strange[0], used)}",
            )


def block_references(config: Config, where: str, block: Block) -> None:
    """Every name in the lists of a block must be that of an entry, and nothing may be listed twice."""
    for section in Block.model_fields:
        listed = getattr(block, section) or []
        if section == "seeds":
            once(listed, f"{where}.seeds")
        else:
            refer(config, section, listed, f"{where}.{section}")


def paper_names(config: Config) -> None:
    """The paper's results must have every name under `paper:`; another one would silently be compared with nothing."""
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
                raise config_error(where, f"the paper's results have no {name!r}{nearest(name, filter(None, known))}")


def machine(runtime: RuntimeSettings, where: str) -> None:
    """A job on a GPU must ask the scheduler for one, or it would share it with another job."""
    if runtime.device.startswith("cuda") and not runtime.gpus:
        raise config_error(
            f"{where}.gpus", f"device: {runtime.device} needs gpus: 1, by which jobs on GPUs are counted"
        )


def refer(config: Config, section: str, listed: Sequence[str], where: str) -> None:
    """Every name that is listed must be that of an entry of the section."""
    known = getattr(config, section)
    for name in listed:
        if name not in known:
            raise config_error(where, f"there is no {SECTIONS[section]} {name!r}{nearest(name, known)}")
    once(listed, where)


def once(listed: Sequence[str | int], where: str) -> None:
    """Nothing may be listed twice."""
    met: set[str | int] = set()
    for item in listed:
        if item in met:
            raise config_error(where, f"{item!r} is listed twice")
        met.add(item)


def data_fields(kind: Kind, where: str, entry: DataSet) -> None:
    """A data set must say which fields hold question and answer in each of its sources, and nothing without use."""
    wrong = set(entry.model_fields_set) & NO_USE[kind]
    if wrong:
        raise config_error(
            f"{where}.{min(wrong)}", f"has no use in a {kind} set, which needs {' and '.join(FIELDS[kind])}"
        )
    if entry.toy is not None:
        if (entry.toy.task == "choice") != (kind == "choice"):
            raise config_error(
                f"{where}.toy.task", f"{entry.toy.task!r} makes no {kind} set; choice sets take 'choice', others 'sums'"
            )
        if kind == "choice" and "steps" in entry.toy.model_fields_set:
            raise config_error(f"{where}.toy.steps", "has no use in a choice set, whose questions have no steps")
        if useless := entry.fields("toy"):
            raise config_error(f"{where}.{min(useless)}", "has no use beside `toy`, whose fields are known")
    sources: tuple[Literal["hub", "file"], ...] = ("hub", "file")
    for source in sources:
        mapped = set(entry.fields(source)) - {"id"} if getattr(entry, source) is not None else set()
        if entry.adapter is not None and mapped:
            raise config_error(f"{where}.{min(mapped)}", "has no use beside `adapter`, which makes all columns")
        if getattr(entry, source) is not None and entry.adapter is None:
            missing = [name for name in FIELDS[kind] if name not in entry.fields(source)]
            if missing:
                raise config_error(
                    f"{where}.{missing[0]}",
                    f"this key is missing: which field of the {source} source holds the {missing[0]}?",
                )


def named(where: str, entry: DataSet) -> None:
    """A range of ids needs the field that holds them."""
    sources: tuple[Literal["hub", "file"], ...] = ("hub", "file")
    given = [source for source in sources if getattr(entry, source) is not None]
    if entry.ids is not None and (not given or any("id" not in entry.fields(source) for source in given)):
        what = "needs `id:`, the field that names a problem" if given else "has no use beside `toy`"
        raise config_error(f"{where}.ids", what)


def plug_ins(config: Config, where: str, entry: DataSet) -> None:
    """A user's code must exist and take the right arguments; `softtok check` also runs it."""
    doors.locate(adapter.DOOR, entry.adapter, config, f"{where}.adapter")
    if isinstance(entry, OpenSet):
        doors.locate(own_reward.DOOR, entry.reward, config, f"{where}.reward")
        if entry.solved_at is not None and not plugins.is_plugin(entry.reward):
            raise config_error(f"{where}.solved_at", f"has no use with reward: {entry.reward}, which gives no numbers")


def own_code(config: Config) -> None:
    """A user's token modes, objectives and figures must exist, with the right methods or arguments."""
    for section in ("training_modes", "inference_modes"):
        for name, mode in getattr(config, section).items():
            written(doors.TOKENS, mode.tokens, config, at(section, name, "tokens"))
    written(doors.OBJECTIVE, config.training.objective, config, "training.objective")
    for section in ("models", "train_sets", "training_modes"):
        for name, entry in getattr(config, section).items():
            written(doors.OBJECTIVE, entry.training.objective, config, at(section, name, "training", "objective"))
    for name, study in config.studies.items():
        drawn: set[str] = set()
        for place, choice in enumerate(study.figures):
            where = at("studies", name, "figures", place)
            figure = doors.reference(doors.FIGURES, choice, config, where)
            if figure is not None and figure.name in drawn:
                raise config_error(where, f"two figures are named {figure.name!r}, as their files would be; rename one")
            drawn |= {figure.name} if figure is not None else set()


def written(door: Door, choice: str | Reference, config: Config, where: str) -> None:
    """Refuses code that is not written as FILE.py:NAME, and so was never looked at; then looks at it."""
    if isinstance(choice, Reference):
        raise config_error(where, "takes a built-in name, FILE.py:NAME or package.module:NAME, not a mapping")
    doors.locate(door, choice, config, where)


def paths(config: Config, requested: Sequence[str]) -> None:
    """Folders and files that jobs of these studies read must exist."""
    models = {name for study in requested for block in config.studies[study].blocks() for name in block.models or []}
    for name, model in config.models.items():
        folder = os.path.expanduser(model.path or "")
        if name in models and model.path is not None and not os.path.isfile(os.path.join(folder, "config.json")):
            lack = "holds no config.json" if os.path.isdir(folder) else "does not exist"
            raise config_error(
                at("models", name, "path"),
                f"the folder {shown(model.path, LONGEST_PATH)} {lack}; a Hugging Face folder is needed",
            )
        if name in models and model.gguf is not None:
            gguf(model.gguf, at("models", name, "gguf"))
    if config.data_root is not None and not os.path.isdir(config.data_root):
        lack = "is a file" if os.path.exists(config.data_root) else "does not exist"
        raise config_error("data_root", f"the folder {shown(config.data_root, LONGEST_PATH)} {lack}")
    for kind, section in DATA_SECTIONS.items():
        used = wanted(config, requested, kind)
        for name, entry in getattr(config, section).items():
            source = entry.source(config.data_root)
            if name in used and source == "hub" and config.data_root is not None:
                raise config_error(
                    at(section, name, "file"),
                    "this key is missing: with data_root, every data set is read from local files",
                )
            if source == "file" and name in used:
                check_first_rows(kind, name, entry, config.data_root)


def gguf(entry: Gguf, where: str) -> None:
    """A GGUF file must be there, and what reads it."""
    try:
        gguf_file(entry.file, entry.package)
        refuse_without_reader()
    except UserError as error:
        raise config_error(where, str(error)) from None


def wanted(config: Config, studies: Iterable[str], kind: Kind) -> Collection[str]:
    """Returns the data sets of a kind that the jobs of these studies read."""
    blocks = [block for study in studies for block in config.studies[study].blocks()]
    names = {name for block in blocks for name in getattr(block, DATA_SECTIONS[kind]) or []}
    texts = {
        toy.text for block in blocks for model in block.models or [] if (toy := config.models[model].toy) and toy.text
    }
    trained = {name for block in blocks for name in block.train_sets or []} | texts | of_blocks(config, blocks)
    if kind == "train":
        return trained
    if kind == "test":
        return names | {name for train_set in trained for name in config.train_sets[train_set].exclude}
    return names
