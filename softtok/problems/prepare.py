"""Prepares a published data set: writes its problems to a parquet file with a manifest.

Problems of train and test sets have id, question and gold (a list, of which any one is right), and those for prompts
the worked text as well. Those of choice sets
have id, question, choices and answer (an index). A `DataSpec` says where the rows are (`sources.py`) and which fields
mean what (`fields.py`). A train set drops problems that it cannot use, and those of excluded test sets. A test or
choice set never drops a problem. The manifest lists what was dropped and what looks odd (`golds.py`), and warns if the
reward does not suit the golds. If the spec has `columns`, a text column holds each whole row of the source or adapter
as JSON, for a user's reward.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from softtok.errors import UserError
from softtok.problems.adapter import Adapter
from softtok.problems.fields import (
    Ids,
    check_fields,
    golds,
    mapped,
    no_gold,
    numbered,
    options,
    question,
    right,
    story,
    worked,
)
from softtok.problems.fields import field as field_of
from softtok.problems.golds import GoldJudge, Reason, counted, plain_reason, words_warning
from softtok.problems.prompt import normalise, normalise_story
from softtok.problems.rows import Row
from softtok.problems.sources import describe, read_rows
from softtok.problems.spec import ChoiceFields, DataSpec, OpenFields
from softtok.problems.texts import text_of
from softtok.storage.files import file_sha256, read_columns, write_manifest, write_table

BLOCK = 1000


@dataclass
class Prepared:
    """The problems of a set, and what is told of them: dropped and flagged ones with id and reason."""

    problems: list[Row] = field(default_factory=list)
    dropped: list[Row] = field(default_factory=list)
    flagged: list[Row] = field(default_factory=list)
    reasons: dict[str, Counter[str]] = field(default_factory=lambda: {"dropped": Counter(), "flagged": Counter()})
    forms: Counter[str] = field(default_factory=Counter)  # problems that have a gold in an odd form, by its name
    source_rows: int = 0

    def drop(self, problem: Row, reasons: Sequence[Reason]) -> None:
        """Leaves a problem out."""
        self.dropped.append(_told(problem, reasons))
        self.reasons["dropped"].update(reason.kind for reason in reasons)

    def keep(self, problem: Row, reasons: Sequence[Reason]) -> None:
        """Adds a problem, flagged if there are reasons for it."""
        self.problems.append(problem)
        if reasons:
            self.flagged.append(_told(problem, reasons))
            self.reasons["flagged"].update({reason.kind for reason in reasons})

    def summary(self) -> str:
        """Returns how many problems were kept, dropped and flagged, and why, in one line."""
        parts = [f"{len(self.problems):,} of {self.source_rows:,} rows kept"]
        for what, rows in (("dropped", self.dropped), ("flagged", self.flagged)):
            parts.append(f"{len(rows):,} {what}" + (f" ({counted(self.reasons[what])})" if rows else ""))
        forms = f"; golds written with {counted(self.forms)}" if self.forms else ""
        return ", ".join(parts) + forms


def _told(problem: Row, reasons: Sequence[Reason]) -> Row:
    return {"id": problem["id"], "reason": "; ".join(reason.text for reason in reasons)}


def prepare(spec: DataSpec, out: Path, exclude: dict[str, Path], data_root: Path | None) -> None:
    """Writes the parquet file `out` and its manifest next to it. Raises UserError before anything is written.

    `exclude` has prepared test sets by name. The paths of file sources start from `data_root`. The last line of the log
    says how many problems were kept, dropped and flagged.
    """
    import pyarrow as pa

    where = describe(spec.source)
    made, origin = make_problems(spec, HeldOut.read(spec, exclude), data_root)
    if not made.problems:
        raise UserError(f"{where}: no problem is left of {made.source_rows} rows ({len(made.dropped)} dropped)")
    refuse_too_few(spec, made)
    columns = {"gold": pa.list_(pa.string())} | dict.fromkeys(_further(spec), pa.string())
    if spec.kind == "choice":
        columns = {"choices": pa.list_(pa.string()), "answer": pa.int64()}
    schema = pa.schema({"id": pa.string(), "question": pa.string()} | columns)
    write_table(out, pa.Table.from_pylist(made.problems, schema=schema))
    warnings = [] if spec.kind == "choice" else words_warning(made.problems, spec.judged_by)
    counts = {
        "rows": len(made.problems),
        "source_rows": made.source_rows,
        "sha256": file_sha256(out),
        "dropped": made.dropped,
        "flagged": made.flagged,
        "reasons": made.reasons,
        "forms": made.forms,
        "warnings": warnings,
    }
    write_manifest(out.with_suffix(".json"), {**origin, **counts, "spec": spec.model_dump(mode="json")})
    for warning in warnings:
        print(f"softtok: warning: {where}: {warning}", file=sys.stderr)
    print(f"softtok: {where}: {made.summary()}", flush=True)


def refuse_too_few(spec: DataSpec, made: Prepared) -> None:
    """Raises UserError if a set has fewer worked examples than prompts are to show."""
    if spec.shown and len(made.problems) < (spec.limit or 0):
        where = describe(spec.source)
        raise UserError(f"{where}: shots: k: {spec.limit}: only {len(made.problems)} problems have worked text")


def _further(spec: DataSpec) -> list[str]:
    """Returns the columns that open problems have besides id, question and gold."""
    fields = spec.fields if isinstance(spec.fields, OpenFields) else None
    mapped_ones = [name for name in ("story", "worked") if fields is not None and getattr(fields, name) is not None]
    return mapped_ones + ["columns"] * spec.columns


def make_problems(spec: DataSpec, held_out: HeldOut, data_root: Path | None) -> tuple[Prepared, Row]:
    """Returns the problems of a set, and revision and source_sha256 for the manifest. Raises UserError."""
    where = describe(spec.source)
    adapter = Adapter(spec.adapter, spec.kind) if spec.adapter else None  # before anything is fetched
    rows, origin = read_rows(spec.source, data_root, None if adapter or spec.columns else mapped(spec.fields))
    if adapter is None:
        check_fields(spec.fields, rows if spec.limit is None else islice(rows, spec.limit), where)
    chosen: Iterator[Row | None]
    counted_rows = Counted(rows)
    chosen = adapted(counted_rows, adapter, where)
    if spec.ids is not None:
        chosen = counted_rows = Counted(between(chosen, spec.ids, spec.fields.id, where))
    if isinstance(spec.fields, ChoiceFields):
        made = choice_problems(spec.fields, islice(chosen, spec.limit), where)
    else:
        made = open_problems(spec, spec.fields, chosen, held_out)
    made.source_rows = counted_rows.total()
    return made, origin


class Counted:
    """Yields rows and counts them."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self.rows = iter(rows)
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = next(self.rows)
        self.count += 1
        return row

    def total(self) -> int:
        """Returns the number of all rows; reads those that are left."""
        for _ in self:
            pass
        return self.count


@dataclass(frozen=True)
class HeldOut:
    """What test sets hold, as it is compared, each with the name of the test set."""

    questions: dict[str, str] = field(default_factory=dict)
    stories: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, test_sets: dict[str, list[Row]]) -> HeldOut:
        """Returns what the problems of test sets hold."""
        named = [(name, row) for name, rows in test_sets.items() for row in rows]
        questions = {normalise(row["question"]): name for name, row in named}
        return cls(questions, {normalise_story(row["story"]): name for name, row in named if row.get("story")})

    @classmethod
    def read(cls, spec: DataSpec, exclude: dict[str, Path]) -> HeldOut:
        """Reads the prepared test sets that a train set excludes."""
        told = {name for name in exclude if name in spec.exclude and "story" in _further(spec.exclude[name])}
        return cls.of(
            {
                name: read_columns(path, ["question", *(["story"] if name in told else [])]).to_pylist()
                for name, path in exclude.items()
            }
        )

    def reasons(self, problem: Row) -> list[Reason]:
        """Returns why a problem must not be trained on, if it must not."""
        if (name := self.questions.get(normalise(problem["question"]))) is not None:
            return [plain_reason(f"the question is in test set {name}")]
        if (name := self.stories.get(normalise_story(problem.get("story", "")))) is not None:
            return [plain_reason(f"the story is in test set {name}")]
        return []


def open_problems(spec: DataSpec, fields: OpenFields, rows: Iterable[Row | None], held_out: HeldOut) -> Prepared:
    """Returns the problems of a train or test set."""
    where = describe(spec.source)
    first: dict[str, Row] = {}
    made = Prepared()
    with GoldJudge(spec.judged_by) as judge:
        for problem, faults, notes in judge(read_problems(fields, rows, where), min(spec.limit or BLOCK, BLOCK)):
            key = normalise(problem["question"])
            faults = [*held_out.reasons(problem), *faults]
            if problem.get("worked") == "":
                faults.append(plain_reason("no worked text"))
            if faults and spec.kind == "train":
                made.drop(problem, faults)
                continue
            if not problem["gold"]:
                raise no_gold(f"{where}: {problem['id']}", fields.gold)
            made.keep(problem, [*faults, *notes, *_other_gold(first.setdefault(key, problem), problem)])
            judge.count(problem["gold"])
            row = problem.pop("row")
            if spec.columns:
                problem["columns"] = _as_json(row)
            if len(made.problems) == spec.limit:
                break
    made.forms = judge.forms
    return made


def _other_gold(before: Row, problem: Row) -> list[Reason]:
    if before["gold"] == problem["gold"]:
        return []
    text = f"the question of {before['id']} with another gold: {problem['gold']}, not {before['gold']}"
    return [Reason("the question of another problem with another gold", text)]


def _as_json(row: Row) -> str:
    """Returns a row as JSON; half of a character, which UTF-8 cannot hold, is escaped."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row, default=str)
    return text


def adapted(rows: Iterable[Row], adapter: Adapter | None, where: str) -> Iterator[Row | None]:
    """Yields the rows as the adapter makes them; None for a row that it leaves out."""
    for number, row in enumerate(rows):
        yield row if adapter is None else adapter(row, f"{where}, row {number}")


def between(rows: Iterable[Row | None], ids: Sequence[str], name: str | None, where: str) -> Iterator[Row]:
    """Yields the rows from the first to the last of two ids, by the numbers at their ends. Raises UserError.

    They come in the order of the numbers, whatever the order of the source is.
    """
    (start, first), (_, last) = map(numbered, ids)
    assert name is not None, "the configuration asks for a field of ids"
    found: dict[int, Row] = {}
    for place, row in enumerate(rows):
        if row is None:  # an adapter left it out
            continue
        at = f"{where}, row {place}"
        beginning, number = numbered(text_of(field_of(row, name, at), name, at))
        if beginning != start or not first <= number <= last:
            continue
        if number in found:
            raise UserError(f"{where}: two rows have the id {start}{number}; name another field under `id:`")
        found[number] = row
    for end in (first, last):
        if end not in found:
            raise UserError(f"{where}: no row has the id {start}{end}, which `ids: [{ids[0]}, {ids[1]}]` names")
    yield from (found[number] for number in sorted(found))


def read_problems(fields: OpenFields, rows: Iterable[Row | None], where: str) -> Iterator[Row]:
    """Yields (id, question, gold, row) of each row; gold is empty if there is none, all are if the row is None."""
    identify = Ids(fields.id, where)
    for number, row in enumerate(rows):
        at = f"{where}, row {number}"
        if row is None:
            yield {"id": f"row{number}", "question": "", "gold": [], "row": None}
            continue
        problem = {"id": identify(row, number), "question": question(row, fields.question, at)}
        if fields.story is not None:
            problem["story"] = story(row, fields, at)
        if fields.worked is not None:
            problem["worked"] = worked(row, fields, at)
        yield problem | {"gold": golds(row, fields.gold, at), "row": row}


def choice_problems(fields: ChoiceFields, rows: Iterable[Row | None], where: str) -> Prepared:
    """Returns the problems of a choice set; all rows must have options and an answer."""
    identify = Ids(fields.id, where)
    made = Prepared()
    for number, row in enumerate(rows):
        at = f"{where}, row {number}"
        assert row is not None, "an adapter leaves no row of a choice set out"
        listed = options(row, fields.choices, at)
        _, texts = listed
        problem = {
            "id": identify(row, number),
            "question": question(row, fields.question, at),
            "choices": texts,
            "answer": right(row, fields.answer, listed, at),
        }
        odd = ["two options are the same"] * (len(set(texts)) < len(texts)) + ["an option is empty"] * ("" in texts)
        made.keep(problem, list(map(plain_reason, odd)))
    return made
