"""Prepares a published data set: writes its problems to a parquet file with a manifest.

Problems of train and test sets have id, question and gold (a list, of which any one is right). Those of choice sets
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

from softtok.errors import UserError
from softtok.problems.adapter import Adapter
from softtok.problems.fields import Ids, check_fields, golds, mapped, no_gold, options, question, right
from softtok.problems.golds import GoldJudge, Reason, counted, plain_reason, words_warning
from softtok.problems.prompt import normalise
from softtok.problems.rows import Row
from softtok.problems.sources import describe, read_rows
from softtok.problems.spec import ChoiceFields, DataSpec, OpenFields
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
    made, origin = make_problems(spec, exclude, data_root)
    if not made.problems:
        raise UserError(f"{where}: no problem is left of {made.source_rows} rows ({len(made.dropped)} dropped)")
    columns = {"gold": pa.list_(pa.string())} | ({"columns": pa.string()} if spec.columns else {})
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


def make_problems(spec: DataSpec, exclude: dict[str, Path], data_root: Path | None) -> tuple[Prepared, Row]:
    """Returns the problems of a set, and revision and source_sha256 for the manifest. Raises UserError."""
    where = describe(spec.source)
    adapter = Adapter(spec.adapter, spec.kind) if spec.adapter else None  # before anything is fetched
    rows, origin = read_rows(spec.source, data_root, None if adapter or spec.columns else mapped(spec.fields))
    if adapter is None:
        check_fields(spec.fields, rows if spec.limit is None else islice(rows, spec.limit), where)
    counted_rows = Counted(rows)
    if isinstance(spec.fields, ChoiceFields):
        made = choice_problems(spec.fields, adapted(islice(counted_rows, spec.limit), adapter, where), where)
    else:
        made = open_problems(spec, spec.fields, adapted(counted_rows, adapter, where), exclude)
    made.source_rows = counted_rows.total()
    return made, origin


class Counted:
    """Yields rows and counts them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = iter(rows)
        self.count = 0

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        row = next(self.rows)
        self.count += 1
        return row

    def total(self) -> int:
        """Returns the number of all rows; reads those that are left."""
        for _ in self:
            pass
        return self.count


def questions(path: Path) -> list[str]:
    """Returns the questions of a prepared set."""
    texts: list[str] = read_columns(path, ["question"]).column("question").to_pylist()
    return texts


def open_problems(spec: DataSpec, fields: OpenFields, rows: Iterable[Row | None], exclude: dict[str, Path]) -> Prepared:
    """Returns the problems of a train or test set."""
    where = describe(spec.source)
    held_out = {normalise(question): name for name, path in exclude.items() for question in questions(path)}
    first: dict[str, Row] = {}
    made = Prepared()
    with GoldJudge(spec.judged_by) as judge:
        for problem, faults, notes in judge(read_problems(fields, rows, where), min(spec.limit or BLOCK, BLOCK)):
            key = normalise(problem["question"])
            if key in held_out:
                faults = [plain_reason(f"the question is in test set {held_out[key]}"), *faults]
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


def read_problems(fields: OpenFields, rows: Iterable[Row | None], where: str) -> Iterator[Row]:
    """Yields (id, question, gold, row) of each row; gold is empty if there is none, all are if the row is None."""
    identify = Ids(fields.id, where)
    for number, row in enumerate(rows):
        at = f"{where}, row {number}"
        if row is None:
            yield {"id": f"row{number}", "question": "", "gold": [], "row": None}
            continue
        asked = question(row, fields.question, at)
        yield {"id": identify(row, number), "question": asked, "gold": golds(row, fields.gold, at), "row": row}


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
