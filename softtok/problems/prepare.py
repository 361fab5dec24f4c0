"""Prepares a published data set: writes its problems to a parquet file with a manifest.

Problems of train and test sets have id, question and gold (a list, of which any one is right). Those of choice sets
have id, question, choices and answer (an index). A `DataSpec` says where the rows are and which fields mean what. A
train set drops problems that it cannot use, and those of excluded test sets. A test or choice set never drops a
problem. The manifest lists what was dropped and what looks odd, and warns if the reward does not suit the golds. If the
spec has `columns`, a text column holds each whole row of the source or adapter as JSON, for a user's reward.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from softtok.errors import UserError
from softtok.problems import toy
from softtok.problems.adapter import Adapter
from softtok.problems.boxed import last_boxed
from softtok.problems.golds import checked, words_warning
from softtok.problems.local_files import local_files
from softtok.problems.prompt import normalise
from softtok.problems.spec import ChoiceFields, DataSpec, FileRows, GoldRule, HubRows, OpenFields, OptionsRule, ToyRows
from softtok.storage.files import canonical_json, file_sha256, read_columns, write_manifest, write_table
from softtok.storage.hub import patiently, reason, why

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


Row = dict[str, Any]
BLOCK = 1000


def prepare(spec: DataSpec, out: Path, exclude: dict[str, Path], data_root: Path | None) -> None:
    """Writes the parquet file `out` and its manifest next to it. Raises UserError before anything is written.

    `exclude` has prepared test sets by name. The paths of file sources start from `data_root`.
    """
    import pyarrow as pa

    where = describe(spec.source)
    adapter = Adapter(spec.adapter, spec.kind) if spec.adapter else None  # before anything is fetched
    rows, origin = read_rows(spec.source, data_root)
    if isinstance(spec.fields, ChoiceFields):
        problems, dropped, flagged = choice_problems(spec.fields, adapted(rows[: spec.limit], adapter, where), where)
        columns = {"choices": pa.list_(pa.string()), "answer": pa.int64()}
    else:
        problems, dropped, flagged = open_problems(spec, spec.fields, adapted(rows, adapter, where), where, exclude)
        columns = {"gold": pa.list_(pa.string())} | ({"columns": pa.string()} if spec.columns else {})
    warnings = words_warning(problems) if spec.judged_by == "math" and spec.kind != "choice" else []
    for warning in warnings:
        print(f"softtok: warning: {where}: {warning}", file=sys.stderr)
    if not problems:
        raise UserError(f"{where}: no problem is left of {len(rows)} rows ({len(dropped)} dropped)")
    schema = pa.schema({"id": pa.string(), "question": pa.string()} | columns)
    write_table(out, pa.Table.from_pylist(problems, schema=schema))
    counts = {
        "rows": len(problems),
        "source_rows": len(rows),
        "sha256": file_sha256(out),
        "dropped": dropped,
        "flagged": flagged,
        "warnings": warnings,
    }
    write_manifest(out.with_suffix(".json"), {**origin, **counts, "spec": spec.model_dump(mode="json")})


def questions(path: Path) -> list[str]:
    """Returns the questions of a prepared set."""
    texts: list[str] = read_columns(path, ["question"]).column("question").to_pylist()
    return texts


def describe(source: ToyRows | HubRows | FileRows) -> str:
    """Returns the name of a source in messages."""
    if isinstance(source, ToyRows):
        return f"toy data set {canonical_json(source.model_dump(exclude={'kind'}))}"
    return f"data set {source.path}"


def rule_text(rule: GoldRule | OptionsRule) -> str:
    """Returns a rule as it was written, for messages."""
    return canonical_json(rule.model_dump(exclude_defaults=True))


# Problems


def open_problems(
    spec: DataSpec, fields: OpenFields, rows: Iterable[Row | None], where: str, exclude: dict[str, Path]
) -> tuple[list[Row], list[Row], list[Row]]:
    """Returns (problems, dropped, flagged) of a train or test set; the latter two have id and reason."""
    train = spec.kind == "train"
    held_out = {normalise(question): name for name, path in exclude.items() for question in questions(path)}
    problems: list[Row] = []
    dropped: list[Row] = []
    flagged: list[Row] = []
    first: dict[str, Row] = {}
    block = min(spec.limit or BLOCK, BLOCK)
    for problem, faults in checked(read_problems(fields, rows, where), block, spec.judged_by):
        key = normalise(problem["question"])
        if key in held_out:
            faults = [f"the question is in test set {held_out[key]}", *faults]
        if faults and train:
            dropped.append({"id": problem["id"], "reason": "; ".join(faults)})
            continue
        if not problem["gold"]:
            raise UserError(
                f"{where}: {problem['id']} has no gold by the rule {rule_text(fields.gold)}; a test problem needs one"
            )
        before = first.setdefault(key, problem)
        if before["gold"] != problem["gold"]:
            faults = [
                *faults,
                f"the question of {before['id']} with another gold: {problem['gold']}, not {before['gold']}",
            ]
        if faults:
            flagged.append({"id": problem["id"], "reason": "; ".join(faults)})
        row = problem.pop("row")
        if spec.columns:
            problem["columns"] = json.dumps(row, ensure_ascii=False, default=str)
        problems.append(problem)
        if len(problems) == spec.limit:
            break
    return problems, dropped, flagged


def adapted(rows: Iterable[Row], adapter: Adapter | None, where: str) -> Iterator[Row | None]:
    """Yields the rows as the adapter makes them; None for a row that it leaves out."""
    for number, row in enumerate(rows):
        yield row if adapter is None else adapter(row, f"{where}, row {number}")


def read_problems(fields: OpenFields, rows: Iterable[Row | None], where: str) -> Iterator[Row]:
    """Yields (id, question, gold, row) of each row; gold is empty if there is none, all are if the row is None."""
    identify = Ids(fields.id, where)
    for number, row in enumerate(rows):
        at = f"{where}, row {number}"
        if row is None:
            yield {"id": f"row{number}", "question": "", "gold": [], "row": None}
            continue
        question = as_text(field(row, fields.question, at))
        yield {"id": identify(row, number), "question": question, "gold": golds(row, fields.gold, at), "row": row}


def choice_problems(
    fields: ChoiceFields, rows: Iterable[Row | None], where: str
) -> tuple[list[Row], list[Row], list[Row]]:
    """Returns (problems, nothing dropped, flagged) of a choice set; all rows must have options and an answer."""
    identify, rule = Ids(fields.id, where), fields.choices
    problems: list[Row] = []
    flagged: list[Row] = []
    for number, row in enumerate(rows):
        at = f"{where}, row {number}"
        assert row is not None, "an adapter leaves no row of a choice set out"
        listed = [field(row, name, at) for name in rule.fields] if rule.fields else field(row, rule.field or "", at)
        if not isinstance(listed, list) or len(listed) < 2:
            raise UserError(f"{at}: choices: {rule_text(rule)} gives no list of options but {listed!r}")
        options = [as_text(option) for option in listed]
        labels = [as_text(label) for label in field(row, rule.labels, at)] if rule.labels is not None else None
        answer = answer_index(field(row, fields.answer, at), labels or list(ascii_uppercase[: len(options)]))
        if answer is None or not 0 <= answer < len(options):
            raise UserError(f"{at}: answer {field(row, fields.answer, at)!r} is none of the {len(options)} options")
        problem = {
            "id": identify(row, number),
            "question": as_text(field(row, fields.question, at)),
            "choices": options,
            "answer": answer,
        }
        if len(set(options)) < len(options):
            flagged.append({"id": problem["id"], "reason": "two options are the same"})
        problems.append(problem)
    return problems, [], flagged


class Ids:
    """Names problems by a field of the source, or by row number. Raises UserError for a repeated name."""

    def __init__(self, name: str | None, where: str) -> None:
        self.name = name
        self.where = where
        self.seen: dict[str, int] = {}

    def __call__(self, row: Row, number: int) -> str:
        found = f"row{number}" if self.name is None else as_text(field(row, self.name, f"{self.where}, row {number}"))
        if self.seen.setdefault(found, number) != number:
            raise UserError(
                f"{self.where}: rows {self.seen[found]} and {number} have the same id {found!r}; "
                "name another field, or none"
            )
        return found


# Fields


def field(row: Row, name: str, where: str) -> Any:
    """Returns the value at `name`: a field of that name, or a path into fields and lists ("prompt.0.content")."""
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            known = list(value) if isinstance(value, dict) else []
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
            raise UserError(f"{where}: no field {name!r}; {hint}")
    return value


def as_text(value: Any) -> str:
    """Returns a scalar as stripped text; None gives "", and 3.0 gives "3", as readers make it of 3 next to 2.5."""
    if value is None:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def golds(row: Row, rule: GoldRule, where: str) -> list[str]:
    """Returns all right answers of a row by the gold rule; empty if there are none."""
    value = field(row, rule.field, where)
    texts = [as_text(one) for one in (value if isinstance(value, list) else [value])]
    if rule.after is not None:
        texts = [text.rpartition(rule.after)[2].strip() for text in texts if rule.after in text]
    elif rule.boxed:
        texts = [(last_boxed(text) or "").strip() for text in texts]
    return [text for text in map(undollared, texts) if text]


def undollared(text: str) -> str:
    """Returns `$x$` without its dollars, if one pair encloses all of it."""
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1] else text


def answer_index(answer: Any, labels: Sequence[str]) -> int | None:
    """Returns the place of the answer, read as a label first (so "1" is the option labelled 1), then as an index."""
    text = as_text(answer)
    if text in labels:
        return labels.index(text)
    return int(text) if text.isdecimal() else None


# Sources


def read_rows(source: ToyRows | HubRows | FileRows, data_root: Path | None) -> tuple[list[Row], Row]:
    """Returns the rows of a source, and revision and source_sha256 for the manifest. Raises UserError."""
    if isinstance(source, FileRows):
        return read_files(source, data_root)
    rows, revision = read_hub(source) if isinstance(source, HubRows) else (toy_rows(source), None)
    # Columns that are not used may hold dates or images, which are not JSON.
    lines = (json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str) for row in rows)
    return rows, {"revision": revision, "source_sha256": sha256_of(f"{line}\n" for line in lines)}


def sha256_of(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


def toy_rows(source: ToyRows) -> list[Row]:
    """Returns rows of the built-in task `sums` (of `steps`) or `choice`; an id is the hash of its text."""
    if source.task == "sums":
        problems = toy.problems(source.steps, source.split, source.problems, source.seed)
        rows: list[Row] = [{"question": p.question, "gold": p.gold} for p in problems]
    else:
        rows = [
            {"question": c.question, "choices": list(c.choices), "answer": c.answer}
            for c in toy.choices(source.split, source.problems, source.seed)
        ]
    return [{"id": sha256_of([canonical_json(row)])[:12]} | row for row in rows]


def read_files(source: FileRows, data_root: Path | None) -> tuple[list[Row], Row]:
    """Returns the rows of local files, and the digest of the file, or of the digests of all files."""
    try:
        paths = local_files(source.path, data_root)
    except UserError as error:
        raise UserError(f"{describe(source)}: no such file ({error})") from None
    for path in paths:
        if not path.stat().st_size:
            raise UserError(f"data set {path}: the file is empty")
    kinds = {source.format or FORMATS.get(path.suffix, path.suffix) for path in paths}
    if len(kinds) > 1 or not kinds <= set(FORMATS.values()):
        raise UserError(
            f"{describe(source)}: needs files of one format, json, csv or parquet; these are {sorted(kinds)}"
        )
    rows = load(kinds.pop(), [str(path) for path in paths], source.columns)
    digests = [file_sha256(path) for path in paths]
    return rows, {"revision": None, "source_sha256": digests[0] if len(digests) == 1 else sha256_of(digests)}


def load(format: str, files: list[str], columns: list[str] | None) -> list[Row]:
    """Returns the rows of files of one format; the reader's cache is in a temporary folder."""
    import datasets

    datasets.disable_progress_bars()
    options: Row = {}
    if format == "csv":
        # Everything stays text. Guessed types would turn an option "0.50" into a number, and the word "None" into null.
        with open(files[0], newline="", encoding="utf-8") as file:
            header = columns or next(csv.reader(file), [])
        features = datasets.Features({name: datasets.Value("string") for name in header})
        options = {"features": features, "keep_default_na": False} | ({"column_names": columns} if columns else {})
    with tempfile.TemporaryDirectory() as cache:
        try:
            loaded = datasets.load_dataset(format, data_files=files, split="train", cache_dir=cache, **options)
            rows: list[Row] = loaded.to_list()
            return rows
        except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
            raise UserError(f"data set {', '.join(files)}: cannot be read as {format}: {reason(error)}") from error


def read_hub(source: HubRows) -> tuple[list[Row], str | None]:
    """Returns the rows of a hub data set (or of a folder with its layout), and the commit that its revision means."""
    import datasets
    from huggingface_hub import HfApi

    datasets.disable_progress_bars()
    path, split, name, revision = source.path, source.split, source.name, source.revision
    try:
        if Path(path).is_dir():
            # The content of a folder may change, and the usual cache would return the old one.
            with tempfile.TemporaryDirectory() as cache:
                return datasets.load_dataset(path, name, split=split, cache_dir=cache).to_list(), None
        commit = patiently(lambda: HfApi().dataset_info(path, revision=revision).sha)
        return patiently(lambda: datasets.load_dataset(path, name, split=split, revision=commit)).to_list(), commit
    except Exception as error:  # network, hub and libraries raise many kinds; all mean that there are no data
        raise UserError(
            f"data set {path} (revision {revision or 'main'}) cannot be fetched: "
            f"{why(error, f'datasets/{path}', revision)}, or give local files with data_root"
        ) from error
