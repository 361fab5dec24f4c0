"""config.yaml: every mistake is one clear line before anything starts, and what is right means what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from softtok.config.grid import Grid
from softtok.config.inherit import merge
from softtok.config.load import load, read, schema_json
from softtok.config.settings import RuntimeSettings, TokenMode, TrainingSettings
from softtok.errors import UserError
from softtok.problems.spec import FileRows, GoldRule, HubRows, OpenFields
from tests.support.configurations import BASIC, Edit, basic, both, drop, grid_of, hashes, put
from tests.support.project import ROOT, shipped

ENOUGH = put("train_sets/sums/toy/problems", 400)  # for the default validation
SOFT = {"tokens": "soft", "temperature": 0.5}
MISTAKES: dict[str, tuple[Edit, list[str]]] = {
    "unknown key at the top": (put("studdies", {}), ["config: studdies: unknown key; did you mean 'studies'?"]),
    "unknown key in an entry": (
        put("training_modes/soft/noise_scal", 1.0),
        ["training_modes.soft.noise_scal: unknown key; did you mean 'noise_scale'?"],
    ),
    "unknown key deep down": (
        put("models/toy/toy/widht", 8),
        ["models.toy.toy.widht: unknown key; did you mean 'width'?"],
    ),
    "unknown key in a grid block": (
        put("studies/first/grid/0/modells", []),
        ["studies.first.grid[0].modells: unknown key; did you mean 'models'?"],
    ),
    "unknown training setting": (
        put("models/toy/training/learning_rat", 1.0),
        ["models.toy.training.learning_rat", "'learning_rate'"],
    ),
    "misspelt training mode": (
        put("studies/first/training_modes", ["hard", "sotf"]),
        ["studies.first.training_modes: there is no training mode 'sotf'; did you mean 'soft'?"],
    ),
    "mode in the wrong letter case": (put("studies/first/training_modes", ["Hard"]), ["'Hard'; did you mean 'hard'?"]),
    "name like no other": (
        put("studies/first/inference_sets", ["zzz"]),
        ["studies.first.inference_sets", "'zzz'; known: two"],
    ),
    "missing test set": (
        put("studies/first/test_sets", ["sum"]),
        ["studies.first.test_sets: there is no test set 'sum'; did you mean 'sums'?"],
    ),
    "missing data set in a block": (
        put("studies/first/grid/0/train_sets", ["sms"]),
        ["studies.first.grid[0].train_sets", "'sms'", "'sums'"],
    ),
    "missing model": (
        put("studies/first/grid/0/models", ["toi"]),
        ["studies.first.grid[0].models: there is no model 'toi'; did you mean 'toy'?"],
    ),
    "missing mode of a set": (
        put("inference_sets/two/0", "hard-gredy"),
        ["inference_sets.two", "'hard-gredy'; did you mean 'hard-greedy'?"],
    ),
    "missing excluded set": (
        put("train_sets/sums/exclude", ["sumz"]),
        ["train_sets.sums.exclude: there is no test set 'sumz'", "'sums'"],
    ),
    "missing text": (
        put("models/toy/toy", {"tokenizer": "bpe", "text": "smus"}),
        ["models.toy.toy.text", "no train set 'smus'", "'sums'"],
    ),
    "missing study": (put("run", ["frist"]), ["run: there is no study 'frist'; did you mean 'first'?"]),
    "nothing to run": (put("run", []), ["run: this is empty"]),
    "text for a number": (
        put("training_modes/soft/noise_scale", "much"),
        ["training_modes.soft.noise_scale", "'much'"],
    ),
    "text for a whole number": (put("models/toy/training/steps", "20"), ["models.toy.training.steps", "'20'"]),
    "fraction for a whole number": (put("models/toy/training/steps", 2.5), ["models.toy.training.steps", "2.5"]),
    "truth for a number": (put("models/toy/training/steps", True), ["models.toy.training.steps", "True"]),
    "word for a list": (
        put("studies/first/training_modes", "hard"),
        ["studies.first.training_modes", "list", "'hard'"],
    ),
    "list for a section": (put("models", ["toy"]), ["models: ['toy'] stands here; it takes keys below it"]),
    "name for a block": (
        put("test_sets/local/gold", "a"),
        ["test_sets.local.gold: 'a' stands here; it takes keys below it: field, after, boxed"],
    ),
    "section without entries": (put("runtime", None), ["runtime: nothing stands here", "device, precision"]),
    "GPU that is not asked for": (
        put("models/toy/runtime", {"device": "cuda"}),
        ["models.toy.runtime.gpus: device: cuda needs gpus: 1"],
    ),
    "more GPUs than a job uses": (put("runtime", {"gpus": 2}), ["runtime.gpus: ", "less than or equal to 1, not 2"]),
    "warm-up that does not end": (
        put("models/toy/training/warmup_steps", 21),
        ["models.toy.training.warmup_steps: 21 steps of warm-up in 20 steps"],
    ),
    "name that the paper does not have": (
        put("models/toy/paper", "llama-3.2-3b"),
        ["models.toy.paper: the paper's results have no 'llama-3.2-3b'; did you mean 'llama-3.2-3b-instruct'?"],
    ),
    "setting that the paper does not have": (
        put("studies/first/paper", {"soft": "fuzzy noise_scale=1"}),
        ["studies.first.paper.soft: the paper's results have no 'fuzzy noise_scale=1'", "'fuzzy noise_scale=1.0'?"],
    ),
    "device that is none": (put("runtime", {"device": "gpu"}), ["runtime.device: 'gpu' is not a device; use auto"]),
    "words that a toy does not know": (
        both(put("models/toy/toy/tokenizer", "words"), put("studies/first/test_sets", ["sums", "local"])),
        ["studies.first.test_sets: model 'toy' knows the words of toy problems only", "'local'", "tokenizer: bpe"],
    ),
    "setting of another kind of token": (
        put("training_modes/hard/training", {"stop_on": "nearest"}),
        ["training_modes.hard.training.stop_on: has no effect on hard tokens"],
    ),
    "setting of another kind of token, beside one that counts": (
        put("training_modes/hard/training", {"embedding_gradient": False, "stop_on": "never"}),
        ["training_modes.hard.training.embedding_gradient: has no effect on hard tokens"],
    ),
    "gradient of what is a constant": (
        both(
            put("training_modes/soft/noise_at", "logits"),
            put("training_modes/soft/training", {"embedding_gradient": False}),
        ),
        ["training_modes.soft.training.embedding_gradient: has no effect on a mixture after noise on the logits"],
    ),
    "infinite temperature": (
        put("training_modes/hard/temperature", float("inf")),
        ["training_modes.hard.temperature", "inf"],
    ),
    "impossible choice": (
        put("training_modes/hard/tokens", "hrad"),
        ["training_modes.hard.tokens: 'hrad' is not possible; did you mean 'hard'?"],
    ),
    "number for a path": (put("test_sets/local/file/path", 3), ["test_sets.local.file.path", "3"]),
    "key left out": (drop("training_modes/hard/tokens"), ["training_modes.hard.tokens: this key is missing"]),
    "negative noise": (
        put("training_modes/soft/noise_scale", -0.1),
        ["training_modes.soft.noise_scale", "greater than or equal to 0", "-0.1"],
    ),
    "soft at temperature 0": (
        put("training_modes/soft/temperature", 0),
        ["training_modes.soft.temperature: 0 is for hard tokens"],
    ),
    "soft inference at temperature 0": (
        put("inference_modes/soft-sample/temperature", 0.0),
        ["inference_modes.soft-sample.temperature: 0"],
    ),
    "noise on hard tokens": (
        put("training_modes/hard/noise_scale", 0.3),
        ["training_modes.hard.noise_scale: 0.3 has no effect"],
    ),
    "no noise with the CoT term on": (
        put("training_modes/soft", SOFT),
        ["training_modes.soft.noise_scale: 0 means no noise", "cot_term: false"],
    ),
    "argmax with the CoT term on": (
        put("training_modes/hard/temperature", 0.0),
        ["training_modes.hard.temperature: 0 means argmax"],
    ),
    "samples of a deterministic mode": (
        put("inference_modes/hard-greedy/samples", 8),
        ["inference_modes.hard-greedy.samples: 8 of a deterministic mode"],
    ),
    "samples of soft without noise": (
        put("inference_modes/soft-sample/noise_scale", 0),
        ["inference_modes.soft-sample.samples: 4 of a deterministic"],
    ),
    "no samples": (put("inference_modes/soft-sample/samples", 0), ["inference_modes.soft-sample.samples"]),
    "samples below k": (
        put("studies/first/k", [1, 8]),
        ["studies.first.k: pass@8 needs 8 samples; inference mode 'soft-sample' has samples: 4"],
    ),
    "paper's name of a mode that the study lacks": (
        put("studies/first/paper", {"sotf": "Soft"}),
        ["studies.first.paper.sotf: this study has no such training mode; did you mean 'soft'?"],
    ),
    "paper's name of a mode that another study has": (
        both(put("training_modes/other", {"tokens": "hard"}), put("studies/first/paper", {"other": "Other"})),
        ["studies.first.paper.other: this study has no such training mode"],
    ),
    "k of 0": (put("studies/first/k", [0]), ["studies.first.k[0]", "0"]),
    "model folder that is not there": (
        both(put("models/mine", {"path": "nowhere"}), put("studies/first/grid/0/models", ["mine"]), ENOUGH),
        ["models.mine.path: the folder 'nowhere' does not exist"],
    ),
    "folder without a model": (
        both(put("models/mine", {"path": "/"}), put("studies/first/grid/0/models", ["mine"]), ENOUGH),
        ["models.mine.path: the folder '/' holds no config.json"],
    ),
    "data file that is not there": (
        both(drop("test_sets/local/hub"), put("studies/first/test_sets", ["local"])),
        ["test_sets.local.file.path: no file 'local.jsonl'"],
    ),
    "file whose name tells no format": (
        both(
            put("test_sets/local/file/path", str(ROOT / "Makefile")),
            put("test_sets/local/hub", None),
            put("studies/first/test_sets", ["local"]),
        ),
        ["test_sets.local.file.path: 'Makefile' ends in none of .jsonl", "`format:`"],
    ),
    "data root that is not there": (put("data_root", "nowhere"), ["data_root: the folder 'nowhere' does not exist"]),
    "file not below the data root": (
        both(put("data_root", "."), put("studies/first/test_sets", ["local"])),
        ["test_sets.local.file.path: no file 'local.jsonl' in ."],
    ),
    "excluded file not below the data root": (
        both(put("data_root", "."), put("train_sets/sums/exclude", ["local"])),
        ["test_sets.local.file.path: no file 'local.jsonl' in ."],
    ),
    "data root without a file entry": (
        both(put("data_root", "."), put("studies/first/test_sets", ["local"]), drop("test_sets/local/file")),
        ["test_sets.local.file: this key is missing", "data_root"],
    ),
    "circle": (
        both(put("training_modes/a", {"like": "b"}), put("training_modes/b", {"like": "a"})),
        ["like: is circular: a -> b -> a"],
    ),
    "like itself": (put("training_modes/a", {"like": "a"}), ["training_modes.a.like: is circular: a -> a"]),
    "like nothing": (
        put("training_modes/a", {"like": "sfot"}),
        ["training_modes.a.like: there is no 'sfot'", "did you mean 'soft'?"],
    ),
    "like a mistaken entry": (
        both(put("training_modes/soft/noise_scal", 1), put("training_modes/a", {"like": "soft"})),
        ["noise_scal: unknown key", "(and 1 more mistake)"],
    ),
    "reserved base": (
        put("training_modes/base", {"tokens": "hard"}),
        ["training_modes.base: the name 'base' is reserved"],
    ),
    "reserved none": (
        put("train_sets/none", {"toy": {"task": "sums", "problems": 60}}),
        ["train_sets.none: the name 'none' is reserved"],
    ),
    "reserved rule": (put("studies/train", {}), ["studies.train: the name 'train' is reserved"]),
    "reserved in capitals": (put("studies/All", {}), ["studies.All: the name 'All' is reserved"]),
    "reserved folder": (put("models/results", {"toy": {}}), ["models.results: the name 'results' is reserved"]),
    "names with one path": (
        put("training_modes/Soft", {**SOFT, "noise_scale": 0.5}),
        ["training_modes.Soft: 'Soft' and 'soft' differ in letter case only"],
    ),
    "seed twice": (put("studies/first/seeds", [0, 1, 0]), ["studies.first.seeds: 0 is listed twice"]),
    "mode twice": (
        put("studies/first/training_modes", ["hard", "hard"]),
        ["studies.first.training_modes: 'hard' is listed twice"],
    ),
    "slash in a name": (lambda c: c["models"].update({"a/b": {"toy": {}}}), ["models.a/b: 'a/b' is not a name"]),
    "space in a name": (lambda c: c["models"].update({"my toy": {"toy": {}}}), ["models.my toy", "not a name"]),
    "dot first": (lambda c: c["models"].update({".toy": {"toy": {}}}), ["'.toy' is not a name"]),
    "name that YAML reads as a number": (
        lambda c: c["models"].update({3: {"toy": {}}}),
        ["models.3: YAML reads this name as int 3", "quotes"],
    ),
    "name that YAML reads as truth": (
        lambda c: c["training_modes"].update({False: {"tokens": "hard"}}),
        ["training_modes.False: YAML reads this name as bool False"],
    ),
    "two sources of a model": (
        put("models/toy/hub", "org/model"),
        ["models.toy: needs exactly one of toy, hub, path, gguf; it has toy and hub"],
    ),
    "no source of a model": (
        put("models/mine", {}),
        ["models.mine: needs exactly one of toy, hub, path, gguf; it has none"],
    ),
    "revision of no hub model": (put("models/toy/revision", "main"), ["models.toy.revision"]),
    "prompt without a question": (put("models/toy/prompt", "Q:"), ["models.toy.prompt", "{question} exactly once"]),
    "two sources of a data set": (
        put("test_sets/sums/file", {"path": "x"}),
        ["test_sets.sums: needs one source", "toy and file"],
    ),
    "no source of a data set": (
        put("test_sets/empty", {"question": "q"}),
        ["test_sets.empty: needs one source", "none"],
    ),
    "data set without a gold": (drop("test_sets/local/gold"), ["test_sets.local.gold: this key is missing"]),
    "train set of choices": (
        put("train_sets/sums/toy/task", "choice"),
        ["train_sets.sums.toy.task: 'choice' makes no train set"],
    ),
    "choice set of sums": (
        put("choice_sets/words/toy/task", "sums"),
        ["choice_sets.words.toy.task: 'sums' makes no choice set"],
    ),
    "steps of a choice set": (
        put("choice_sets/words/toy/steps", [2, 4]),
        ["choice_sets.words.toy.steps: has no use in a choice set"],
    ),
    "answer in a test set": (put("test_sets/local/answer", "a"), ["test_sets.local.answer: has no use in a test set"]),
    "gold in a choice set": (
        put("choice_sets/words/gold", {"field": "a"}),
        ["choice_sets.words.gold: has no use in a choice set"],
    ),
    "field of a toy": (put("test_sets/sums/question", "q"), ["test_sets.sums.question: has no use beside `toy`"]),
    "gold by two rules": (
        put("test_sets/local/gold", {"field": "a", "after": "#", "boxed": True}),
        ["test_sets.local.gold", "not both"],
    ),
    "steps the wrong way round": (
        put("test_sets/sums/toy/steps", [4, 2]),
        ["test_sets.sums.toy.steps: [4, 2] is not a range"],
    ),
    "words for other text": (
        put("models/toy/toy", {"text": "sums"}),
        ["models.toy.toy.tokenizer: 'words' knows the words of the toy"],
    ),
    "width no multiple of heads": (put("models/toy/toy/width", 100), ["models.toy.toy.width: 100"]),
    "one sample per prompt": (
        put("models/toy/training/samples_per_prompt", 1),
        ["models.toy.training.samples_per_prompt", "2"],
    ),
    "too few problems": (
        put("train_sets/sums/limit", 9),
        ["train_sets.sums: 9 problems are too few for validation_problems: 8"],
    ),
    "block without models": (
        put("studies/first/grid/0", {"train_sets": ["sums"]}),
        ["studies.first.grid[0].models: this list is missing or empty"],
    ),
    "study without seeds": (
        drop("studies/first/seeds"),
        ["studies.first.grid[0].seeds: this list is missing or empty"],
    ),
    "study that measures nothing": (
        both(drop("studies/first/test_sets"), drop("studies/first/choice_sets")),
        ["studies.first.grid[0].test_sets", "nothing would be measured"],
    ),
    "test sets without modes": (
        drop("studies/first/inference_sets"),
        ["studies.first.grid[0].inference_sets: this list is missing"],
    ),
    "empty inference set": (put("inference_sets/two", []), ["inference_sets.two: this is empty"]),
    "empty grid": (put("studies/first/grid", []), ["studies.first.grid: this is empty"]),
    "choice format of a test set": (
        put("test_sets/sums/evaluation/choice_format", "cloze"),
        ["test_sets.sums.evaluation.choice_format: unknown key"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_that_names_key_and_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edit, fragments = MISTAKES[name]
    config = basic()
    edit(config)
    with pytest.raises(UserError) as caught:
        Grid(load(config))
    text = str(caught.value)
    assert text.startswith("config: ")
    assert "\n" not in text
    assert len(text) < 300
    for fragment in fragments:
        assert fragment in text


def test_the_basic_configuration_of_these_tests_is_right() -> None:
    assert len(Grid(load(basic())).studies["first"].runs) == 3


def test_shipped_config_loads_and_sets_the_defaults_that_the_classes_have() -> None:
    config = read(ROOT / "config.yaml")
    assert config.run == ["demo"]
    assert config.training == TrainingSettings()
    assert config.runtime == RuntimeSettings()
    assert set(config.training.given()) == set(TrainingSettings.model_fields), "config.yaml comments on every key"
    assert set(config.runtime.given()) == set(RuntimeSettings.model_fields)
    assert Grid(config).studies.keys() == config.studies.keys()


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("1E3", 1000.0), ("-1e-2", None), ("1.0e-5", 1e-5), ("1e", None), ("e5", None)]
)
def test_exponents_without_a_dot_are_numbers(text: str, value: float | None) -> None:
    config = basic()
    config["models"]["toy"]["training"]["learning_rate"] = yaml.safe_load(text)
    if value is None:
        with pytest.raises(UserError, match=r"models\.toy\.training\.learning_rate"):
            load(config)
    else:
        assert load(config).training_of("toy", "sums", "hard").learning_rate == value


def test_the_examples_in_the_readme_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl", "mine-test.jsonl"):
        (tmp_path / name).write_text('{"question": "1 + 1?", "answer": "2"}\n')
    config = shipped()
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    found = [
        Grid(load(merge(config, example), requested=list(example["studies"])))
        for example in map(yaml.safe_load, blocks)
    ]
    names = ("warm", "prompts", "demo", "mine")
    warm, asked, variant, own = (grid.studies[name] for grid, name in zip(found, names, strict=True))
    assert (len(warm.runs), len(variant.runs), len(own.runs)) == (7, 13, 3)
    ((base, answered),) = asked.evaluations.items()
    shown = {item.data.name: len(item.shots_path(asked.runs[base].model)) for item in answered.values()}
    assert shown == {"gsm8k": 0, "gsm8k-shots": 1}
    sources = [run.train_set.spec.source for run in own.runs.values() if run.train_set]
    assert {source.path for source in sources if isinstance(source, FileRows)} == {"mine.jsonl"}


def test_names_that_look_like_numbers_stay_names() -> None:
    grid = grid_of(
        put("training_modes/1e-4", {"tokens": "soft", "temperature": 1e-4, "noise_scale": 1}),
        put("studies/first/training_modes", ["1e-4"]),
    )
    assert any("/1e-4/seed0-" in folder for folder in grid.runs)


def test_training_precedence_is_defaults_model_train_set_mode() -> None:
    layers = [
        "training/steps",
        "models/toy/training/steps",
        "train_sets/sums/training/steps",
        "training_modes/hard/training",
    ]
    values: list[Any] = [31, 32, 33, {"steps": 34}]
    config = basic()
    config["training"] = {}
    del config["models"]["toy"]["training"]["steps"]
    expected = [4000]
    for path, value in zip(layers, values, strict=True):
        put(path, value)(config)
        expected.append(value["steps"] if isinstance(value, dict) else value)
        assert load(config).training_of("toy", "sums", "hard").steps == expected[-1]
    assert load(config).training_of("toy", "sums", "soft").steps == 33, "the mode's override is the mode's alone"
    assert load(config).training_of("toy", "sums", "hard").max_cot_tokens == 16


def test_evaluation_and_runtime_precedence() -> None:
    config = load(
        {**basic(), "evaluation": {"max_cot_tokens": 7, "max_answer_tokens": 9}, "runtime": {"threads": 2, "gpus": 1}}
    )
    assert config.evaluation_of("sums").model_dump() == {
        "max_cot_tokens": 20,
        "max_answer_tokens": 9,
        "stop_on": "shadow",
    }
    raw = {**basic(), "runtime": {"threads": 2, "gpus": 1}}
    raw["models"]["toy"]["runtime"] = {"threads": 4}
    runtime = load(raw).runtime_of("toy")
    assert (runtime.threads, runtime.gpus, runtime.save_every) == (4, 1, RuntimeSettings().save_every)


@pytest.mark.parametrize(
    "place", ["training", "models/toy/training", "train_sets/sums/training", "training_modes/soft/training"]
)
def test_training_without_noise_is_possible_without_the_cot_term(place: str) -> None:
    config = basic()
    config["training"] = {}
    config["training_modes"]["soft"] = {**SOFT, "training": {}}
    put(f"{place}/cot_term", False)(config)
    assert load(config).training_modes["soft"].deterministic


def test_like_follows_chains_merges_blocks_and_drops_nulls() -> None:
    config = load(
        {
            **basic(),
            "training_modes": {
                "c": {"like": "b", "noise_scale": 1.0},
                "b": {"like": "a", "temperature": 0.25, "training": {"stop_on": "nearest"}},
                "a": {
                    "tokens": "soft",
                    "temperature": 0.5,
                    "noise_scale": 0.33,
                    "paper": "soft",
                    "training": {"steps": 5},
                },
                "hard": {"tokens": "hard"},
                "soft": {"like": "c", "training": None},
            },
        }
    )
    c = config.training_modes["c"]
    assert (c.tokens, c.temperature, c.noise_scale, c.paper) == ("soft", 0.25, 1.0, None)
    assert c.training.given() == {"steps": 5, "stop_on": "nearest"}
    assert config.training_modes["soft"].training.given() == {}
    assert config.training_modes["a"].paper == "soft"


def test_settings_classes_stay_usable_from_plain_json() -> None:
    spec = json.loads(grid_of().runs[next(folder for folder in grid_of().runs if "/soft/" in folder)].json)
    assert TrainingSettings(**spec["training"]).steps == 20
    assert TokenMode(**spec["mode"]).noise_scale == 0.33
    assert RuntimeSettings(**json.loads(RuntimeSettings().model_dump_json())) == RuntimeSettings()


def test_repeated_keys_are_told_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(BASIC.replace("  hard: {tokens: hard}", "  hard: {tokens: hard}\n  hard: {tokens: soft}"))
    with pytest.raises(
        UserError, match=r"config: training_modes.hard: this key appears twice in .*config.yaml, in lines 13 and 14"
    ):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"a: [1", "is not YAML"), ("# ö".encode("latin-1"), "is not YAML"), (b"", "no settings"), (None, "No such file")],
)
def test_unreadable_files_are_one_line(text: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_schema_file_is_in_step_with_the_classes() -> None:
    assert (ROOT / "workflow/schemas/config.schema.json").read_text(encoding="utf-8") == schema_json(), (
        "run `make schema`"
    )


def test_schema_accepts_what_is_right_and_sees_mistakes() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema_json()))
    config = shipped()
    assert not list(validator.iter_errors(config))
    assert not list(validator.iter_errors({**basic(), "training_modes": {"a": {"like": "b"}, "b": {"tokens": "hard"}}}))
    for name in (
        "unknown key in an entry",
        "impossible choice",
        "negative noise",
        "key left out",
        "slash in a name",
        "word for a list",
    ):
        config = basic()
        MISTAKES[name][0](config)
        assert list(validator.iter_errors(config)), name


# Identity


@pytest.mark.parametrize(
    "edit",
    [
        put("runtime", {"threads": 3, "precision": "fp32", "rollout_rows": 7}),
        put("models/toy/runtime", {"memory_mb": 99}),
        put("models/toy/toy/architecture", "llama"),
        put("training_modes/hard/paper", "hard"),
        put("training", TrainingSettings().model_dump(exclude={"max_cot_tokens"})),
        put("training_modes/hard", TokenMode(tokens="hard").model_dump(exclude_none=True)),
        put("training_modes/hard/temperature", 1),
        put("training_modes/other", {"tokens": "hard", "temperature": 0.5}),
        put("inference_modes/other", {"tokens": "hard", "temperature": 0.5}),
        put("studies/first/title", "Another title"),
        lambda config: (
            config["training_modes"].update({"renamed": config["training_modes"].pop("hard")})
            or config["studies"]["first"].update(training_modes=["renamed", "soft"])
        ),
        lambda config: config.update({key: config.pop(key) for key in sorted(config)}),
    ],
)
def test_what_decides_no_result_changes_no_hash(edit: Edit) -> None:
    assert hashes(grid_of(edit)) == hashes(grid_of())


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (put("training_modes/hard/temperature", 0.9), {"runs"}),
        (put("models/toy/training/steps", 21), {"runs"}),
        (put("studies/first/seeds", [1]), {"runs"}),
        (put("models/toy/toy/seed", 1), {"models", "runs"}),
        (put("models/toy/toy/architecture", "qwen2"), {"models", "runs"}),
        (put("models/toy/prompt", "Question: {question}"), {"models", "runs"}),
        (put("train_sets/sums/limit", 50), {"data", "runs"}),
        (put("train_sets/sums/exclude", []), {"data", "runs"}),
        (put("test_sets/sums/limit", 4), {"data", "runs", "evaluations"}),
        (put("test_sets/sums/evaluation/max_cot_tokens", 21), {"evaluations"}),
        (put("inference_modes/soft-sample/samples", 8), {"evaluations"}),
        (put("evaluation", {"choice_format": "cloze"}), {"choices"}),
        (put("choice_sets/words/choice_format", "cloze"), {"choices"}),
        (put("choice_sets/words/toy/problems", 6), {"data", "choices"}),
    ],
)
def test_what_decides_a_result_changes_exactly_its_hashes(edit: Edit, changed: set[str]) -> None:
    before, after = hashes(grid_of()), hashes(grid_of(edit))
    assert {kind for kind in before if before[kind] != after[kind]} == changed


def row(text: str) -> str:
    """A line of a data file with the fields that some edit of the set `local` maps."""
    return json.dumps({"q": text, "a": text, "b": f"#### {text}"}) + "\n"


def local(path: Path, text: str) -> Edit:
    path.write_text(row(text))
    return both(
        put("data_root", str(path.parent)),
        put("studies/first/test_sets", ["local"]),
        put("test_sets/local/file/path", path.name),
    )


def test_a_local_file_counts_by_its_content_not_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other, changed = (
        local(tmp_path / "a/x.jsonl", "1"),
        local(tmp_path / "b/x.jsonl", "1"),
        local(tmp_path / "b/y.jsonl", "2"),
    )
    assert hashes(grid_of(one)) == hashes(grid_of(other))
    spec = next(data.spec for data in grid_of(one).data.values() if data.name == "local")
    assert isinstance(spec.source, FileRows) and spec.source.path == "x.jsonl"
    assert str(tmp_path) not in spec.as_json()
    rewritten = both(
        changed, put("test_sets/local/file/path", "x.jsonl"), lambda _: (tmp_path / "b/x.jsonl").write_text(row("2"))
    )
    assert hashes(grid_of(rewritten))["evaluations"] != hashes(grid_of(one))["evaluations"]


def test_hub_is_read_without_data_root_and_each_source_has_its_own_fields(tmp_path: Path) -> None:
    use = put("studies/first/test_sets", ["local"])
    own = put("test_sets/local/file/gold", {"field": "b", "after": "####"})
    (tmp_path / "local.jsonl").write_text(row("1"))
    specs = [
        next(data.spec for data in grid_of(use, own, *more).data.values() if data.name == "local")
        for more in ([], [put("data_root", str(tmp_path))])
    ]
    assert specs[0].source == HubRows(path="org/set", name=None, split="test", revision=None)
    assert specs[0].fields == OpenFields(id=None, question="q", gold=GoldRule(field="a"))
    assert specs[1].fields == OpenFields(id=None, question="q", gold=GoldRule(field="b", after="####"))


def test_data_root_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert grid_of(put("data_root", "~/data")).config.data_root == str(tmp_path / "data")


def test_only_requested_studies_need_their_files_below_data_root(tmp_path: Path) -> None:
    config = basic()
    config["studies"]["second"] = {**config["studies"]["first"], "test_sets": ["local"]}
    config["test_sets"]["remote"] = {**config["test_sets"]["local"], "file": None}
    config["data_root"] = str(tmp_path)
    load(config)
    load(config, requested=["-n", "first"])
    with pytest.raises(UserError, match=r"test_sets.local.file.path: no file 'local.jsonl'"):
        load(config, requested=["-n", "second"])


def test_only_requested_studies_need_their_models_and_files(tmp_path: Path) -> None:
    config = basic()
    ENOUGH(config)
    config["models"]["gone"] = {"path": str(tmp_path / "gone")}
    config["test_sets"]["local"].pop("hub")
    config["studies"]["second"] = {**config["studies"]["first"], "grid": [{"models": ["gone"], "train_sets": ["sums"]}]}
    config["studies"]["third"] = {**config["studies"]["first"], "test_sets": ["local"]}
    Grid(load(config))
    with pytest.raises(UserError, match=r"models.gone.path: the folder '.*gone' does not exist"):
        load(config, requested=["second"])
    with pytest.raises(UserError, match=r"test_sets.local.file.path: no file 'local.jsonl' in the working folder"):
        load(config, requested=["third"])


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "local.jsonl").mkdir()
    config = basic()
    put("studies/first/test_sets", ["local"])(config)
    put("data_root", str(tmp_path))(config)
    with pytest.raises(UserError, match=r"test_sets.local.file.path: no file 'local.jsonl'"):
        load(config)


@pytest.mark.parametrize("moved", [{"hub": "other/model"}, {"hub": None, "path": "folder"}])
def test_a_revision_is_not_inherited_by_another_repository(moved: dict[str, Any]) -> None:
    config = basic()
    config["models"] |= {
        "one": {"hub": "some/model", "revision": "abc"},
        "same": {"like": "one", "hub": "some/model", "prompt": "{question}"},
        "other": {"like": "one", **moved},
    }
    config["test_sets"] |= {
        "pinned": {"like": "local", "hub": {"revision": "abc"}},
        "elsewhere": {"like": "pinned", "hub": {"path": "org/other"}},
        "cut": {"like": "pinned", "limit": 3},
    }
    made = load(config)
    assert [made.models[name].revision for name in ("same", "other")] == ["abc", None]
    hubs = [made.test_sets[name].hub for name in ("cut", "elsewhere")]
    assert [hub.revision for hub in hubs if hub] == ["abc", None]


def test_files_of_other_problems_than_the_papers_are_compared_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "local.jsonl").write_text(row("1"))

    def spec(root: bool, **file: Any) -> Any:
        named = both(put("studies/first/test_sets", ["local"]), put("test_sets/local/paper", "gsm8k"))
        own = [put(f"test_sets/local/file/{key}", value) for key, value in file.items()]
        return grid_of(named, *own, *([put("data_root", str(tmp_path))] if root else [])).studies["first"].spec

    assert [
        "local" in spec(root, **file).paper["test_sets"]
        for root, file in ((False, {}), (True, {}), (False, {"comparable": False}), (True, {"comparable": False}))
    ] == [True, True, True, False]
    files: list[dict[str, bool]] = [{}, {"comparable": False}, {"comparable": True}]
    tests = [[run.tests for run in spec(True, **file).runs] for file in files]
    assert tests[0] == tests[1] == tests[2], "what is said of a file does not change what is made of it"
    assert spec(True) == spec(True, comparable=True)


# The report spec


def test_blocks_are_united_and_lists_of_a_block_win() -> None:
    study = grid_of(
        put("training_modes/fuzzy", {"like": "soft", "temperature": 1.0e-4}),
        put("test_sets/more", {"like": "sums", "limit": 3}),
        put(
            "studies/first/grid",
            [
                {"models": ["toy"], "train_sets": ["sums"]},
                {
                    "models": ["toy"],
                    "train_sets": ["sums"],
                    "training_modes": ["soft", "fuzzy"],
                    "seeds": [0, 1],
                    "test_sets": ["more"],
                },
            ],
        ),
    ).studies["first"]
    runs = {(run.training_mode, run.seed): run for run in study.spec.runs}
    assert len(runs) == len(study.spec.runs) == 6
    assert runs.keys() == {("base", 0), ("hard", 0), ("soft", 0), ("soft", 1), ("fuzzy", 0), ("fuzzy", 1)}
    assert runs["hard", 0].tests.keys() == {"sums"}
    assert runs["soft", 0].tests.keys() == runs["base", 0].tests.keys() == {"sums", "more"}
    assert runs["fuzzy", 1].tests.keys() == {"more"}
    assert len(study.evaluation_files(".parquet")) == 1 + 3 + 2 * 2
    assert len(study.choice_files(".parquet")) == 6


def test_base_models_can_be_studied_alone() -> None:
    study = grid_of(
        drop("studies/first/training_modes"),
        drop("studies/first/seeds"),
        put("studies/first/grid", [{"models": ["toy"]}]),
    )
    (run,) = study.studies["first"].spec.runs
    assert (run.train_set, run.training_mode, run.seed) == ("none", "base", 0)


def test_report_shows_things_in_the_order_of_the_lists_whatever_the_order_of_entries() -> None:
    def shuffled(config: dict[str, Any]) -> None:
        for section, entries in config.items():
            if isinstance(entries, dict):
                config[section] = dict(reversed(entries.items()))

    study, other = grid_of().studies["first"], grid_of(shuffled).studies["first"]
    assert study.json == other.json
    assert study.spec.order["training_modes"] == ["hard", "soft"]
    assert list(study.spec.inference_modes) == ["hard-greedy", "soft-sample"]
    turned = grid_of(put("studies/first/training_modes", ["soft", "hard"])).studies["first"]
    assert turned.spec.order["training_modes"] == ["soft", "hard"]
    assert turned.runs.keys() == study.runs.keys()


def test_report_spec_says_where_everything_is() -> None:
    study = grid_of(put("training_modes/soft/paper", "soft"), put("studies/first/k", [1, 4])).studies["first"]
    spec = study.spec
    assert spec.paper["training_modes"] == {"soft": "soft"}
    named = put("studies/first/paper", {"hard": "fuzzy noise_scale=0.1"})
    assert grid_of(named).studies["first"].spec.paper["training_modes"] == {"hard": "fuzzy noise_scale=0.1"}
    assert spec.k == [1, 4]
    files = {
        f"{run.path}/eval/{test_set}/{inference_set}-{h8}.parquet"
        for run in spec.runs
        for test_set, sets in run.tests.items()
        for inference_set, h8 in sets.items()
    }
    assert files == set(study.evaluation_files(".parquet"))
    assert {frozenset(run.tests["sums"]) for run in spec.runs} == {frozenset({"two"})}
    assert "runtime" not in spec.as_json()
