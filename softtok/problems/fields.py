r"""What the fields of a source's row mean: the question, golds and options of a problem, and its name.

A field is named as it is ("answer"), by a path ("prompt.0.content", from the end "prompt.-1.content"), and in questions
also by a template ("{Body} {Question}").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import islice
from string import ascii_uppercase
from typing import Any

from softtok.errors import UserError
from softtok.plugins import shown
from softtok.problems.boxed import last_box
from softtok.problems.rows import Row, lists_of_rows
from softtok.problems.spec import ChoiceFields, GoldRule, OpenFields, OptionsRule
from softtok.problems.text_rewards import letter
from softtok.problems.texts import text_of
from softtok.storage.files import canonical_json

IN_BRACES = re.compile(r"\{([^{}\s](?:[^{}]*[^{}\s])?)\}")
MESSAGES = re.compile(r"""\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
FIRST_ROWS = 20
MOST_NAMED = 30
"""Fields that a message lists at most."""
MISSING = object()


class FieldError(UserError):
    """A mistake in the mapping of fields; `key` is that of the configuration."""

    def __init__(self, key: str, message: object) -> None:
        super().__init__(str(message))
        self.key = key


def rule_text(rule: GoldRule | OptionsRule) -> str:
    """Returns a rule as it was written, for messages."""
    return canonical_json(rule.model_dump(exclude_defaults=True))


# Finding fields


def mapped(fields: OpenFields | ChoiceFields) -> dict[str, str]:
    """Returns the fields that are read, each with the key of the configuration that names it."""
    names = dict.fromkeys(IN_BRACES.findall(fields.question) or [fields.question], "question")
    if fields.id is not None:
        names[fields.id] = "id"
    if isinstance(fields, OpenFields):
        further = {"story": fields.story, "worked": fields.worked.field if fields.worked else None}
        return names | {name: key for key, name in further.items() if name} | {fields.gold.field: "gold"}
    options = fields.choices
    listed = [name for name in (options.field, options.labels, *(options.fields or [])) if name is not None]
    return names | dict.fromkeys(listed, "choices") | {fields.answer: "answer"}


def find(row: Row, name: str) -> Any:
    """Returns the value at a name or path, or `MISSING`."""
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        value = _step(value, key)
        if value is MISSING:
            break
    return value


def _step(value: Any, key: str) -> Any:
    """Returns what an object holds under a key, or a list at a place; or `MISSING`."""
    if isinstance(value, dict):
        return value.get(key, MISSING)
    if isinstance(value, list) and re.fullmatch("-?[0-9]+", key) and -len(value) <= int(key) < len(value):
        return value[int(key)]
    return MISSING


def field(row: Row, name: str, where: str) -> Any:
    """Returns the value at a name or path. Raises UserError if there is none."""
    value = find(row, name)
    if value is MISSING:
        raise UserError(f"{where}: no field {name!r}; {_hint(row, name)}")
    return value


def _hint(row: Row, name: str) -> str:
    """Says which field may be meant by a name that is not found."""
    value: Any = row
    key = name
    for key in name.split("."):
        if (inner := _step(value, key)) is MISSING:
            break
        value = inner
    if isinstance(value, list):
        return f"there is a list of {len(value)}, whose elements are 0, 1, ... and from the end -1, -2, ..."
    known = list(value) if isinstance(value, dict) else []
    named = ", ".join(known[:MOST_NAMED]) + ", ..." * (len(known) > MOST_NAMED)
    listed = " ".join(f"there {'is' if len(known) == 1 else 'are'} {named or 'none'}".split())
    if value is row and len(known) < 3 and (lists := lists_of_rows(row)):
        return f"{listed}; if {lists[0]!r} holds the rows, set `rows: {lists[0]}` beside `path:`"
    if len(known) == 1 and (separator := re.search(r"[;\t|,]", known[0])):
        return f"{listed}, one column; set `separator: {canonical_json(separator[0])}` beside `path:`"
    near = get_close_matches(key, known, 1)
    return f"did you mean {near[0]!r}?" if near else listed


def check_fields(fields: OpenFields | ChoiceFields, rows: Iterable[Row], where: str, needs_gold: bool = False) -> None:
    """Checks the mapped fields of the first rows. Raises FieldError for a mistake.

    Each field must be in one row at least (a row may lack a field that is null), and hold what it is mapped to. More
    rows are read only to look for a field that the first ones lack.
    """
    rest = iter(rows)
    first = list(islice(rest, FIRST_ROWS))
    absent = {name: key for name, key in mapped(fields).items() if all(find(row, name) is MISSING for row in first)}
    for row in rest if absent else ():
        absent = {name: key for name, key in absent.items() if find(row, name) is MISSING}
        if not absent:
            break
    for name, key in absent.items() if first else ():
        raise FieldError(key, f"{where}, row 0: no field {name!r}; {_hint(first[0], name)}")
    for number, row in enumerate(first):
        _check_row(fields, row, f"{where}, row {number}", needs_gold)


def _check_row(fields: OpenFields | ChoiceFields, row: Row, where: str, needs_gold: bool) -> None:
    key = "question"
    try:
        question(row, fields.question, where)
        if isinstance(fields, ChoiceFields):
            key = "choices"
            listed = options(row, fields.choices, where)
            key = "answer"
            right(row, fields.answer, listed, where)
        else:
            key = "gold"
            if not golds(row, fields.gold, where) and needs_gold:
                raise no_gold(where, fields.gold)
            key = "story"
            story(row, fields, where)
            key = "worked"
            worked(row, fields, where)
        key = "id"
        if fields.id is not None:
            text_of(field(row, fields.id, where), fields.id, where)
    except UserError as error:
        raise FieldError(key, error) from None


# What they hold


def question(row: Row, name: str, where: str) -> str:
    """Returns the text of a field, or of a template with fields in braces; a field that the row lacks is empty."""
    text = _text(row, name, where)
    if IN_BRACES.search(name):
        text = IN_BRACES.sub(lambda found: _text(row, found[1], where), name).strip()
    if MESSAGES.match(text):
        raise UserError(f"{where}: {name!r} is a text that holds a list of messages; take one out with an `adapter:`")
    return text


def _text(row: Row, name: str, where: str) -> str:
    value = find(row, name)
    return "" if value is MISSING else text_of(value, name, where)


def golds(row: Row, rule: GoldRule, where: str) -> list[str]:
    """Returns all right answers of a row by the gold rule; empty if there are none."""
    value = find(row, rule.field)
    if value is MISSING:
        return []
    values = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
    texts = [text_of(one, rule.field if n is None else f"{rule.field}.{n}", where) for n, one in values]
    return [found for text in texts if (found := undollared(_by_rule(text, rule)))]


def _by_rule(text: str, rule: GoldRule) -> str:
    """Returns the answer in a text; empty if it has none."""
    if rule.after is not None:
        _, marker, text = text.rpartition(rule.after)
        if not marker:
            return ""
    if rule.before is not None:
        text = text.partition(rule.before)[0]
    if rule.boxed:
        text = last_box(text) or ""
    if rule.pattern is not None:
        found = re.search(rule.pattern, text)
        text = (found[found.re.groups] or "") if found else ""
    return text.strip()


def story(row: Row, fields: OpenFields, where: str) -> str:
    """Returns what variations of a row's problem share; empty if there is nothing."""
    return _text(row, fields.story, where) if fields.story is not None else ""


def worked(row: Row, fields: OpenFields, where: str) -> str:
    """Returns a row's solution as it is written out; empty if there is none."""
    rule = fields.worked
    if rule is None:
        return ""
    text = _text(row, rule.field, where)
    if rule.before is not None:
        text = text.rpartition(rule.before)[0]
    return (re.sub(rule.remove, "", text) if rule.remove is not None else text).strip()


def no_gold(where: str, rule: GoldRule) -> UserError:
    """Returns the error of a test problem without a right answer."""
    return UserError(f"{where} has no gold by the rule {rule_text(rule)}; a test problem needs one")


def undollared(text: str) -> str:
    """Returns `$x$` without its dollars, if one pair encloses all of it."""
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1] else text


Labelled = tuple[list[str], list[str]]
"""The labels of options, and their texts."""


def options(row: Row, rule: OptionsRule, where: str) -> Labelled:
    """Returns the labels and the texts of a row's options. Raises UserError if it has not two at least."""
    named = rule.field if rule.field is not None else ""
    listed = [field(row, name, where) for name in rule.fields] if rule.fields else field(row, named, where)
    labels: list[str] | None = None
    if isinstance(listed, dict) and rule.labels is None:
        labels, listed = list(listed), list(listed.values())
    if not isinstance(listed, list) or len(listed) < 2:
        raise UserError(f"{where}: choices: {rule_text(rule)} gives no list of options but {shown(listed)}")
    names = rule.fields or [f"{named}.{place}" for place in range(len(listed))]
    texts = [text_of(option, name, where) for option, name in zip(listed, names, strict=True)]
    if rule.labels is not None:
        given = field(row, rule.labels, where)
        if not isinstance(given, list) or len(given) != len(texts):
            raise UserError(f"{where}: choices: labels: {rule.labels!r} does not hold a label for each of the options")
        return [text_of(label, rule.labels, where) for label in given], texts
    if labels is not None:
        return labels, texts
    return own_labels(texts) or (list(ascii_uppercase[: len(texts)]), texts)


# A)5, (A) 5, A. 5, but no initials; and 1) 5, (1) 5, 1. 5, but not 1.5
_LETTERED = re.compile(r"[(（\[]?([A-Za-z])\s*(?:[)）\]:：、．]|\.(?!\w\.))\s*(.+)", re.DOTALL)
_NUMBERED = re.compile(r"(?:\(?([0-9]{1,2})\)\s*|([0-9]{1,2})\.\s+)(.+)", re.DOTALL)


def own_labels(texts: Sequence[str]) -> Labelled | None:
    """Returns the labels that options bring in their texts ("A)5"), and the texts without them; None without labels.

    All options must have one, and the labels be the first letters or numbers, in any order.
    """
    for form, known in ((_LETTERED, ascii_uppercase), (_NUMBERED, range(1, 27))):
        found = [form.fullmatch(text) for text in texts]
        parts = [tuple(filter(None, match.groups())) for match in found if match]
        if len(parts) < len(texts):
            continue
        if sorted(label.upper().zfill(2) for label, _ in parts) == [str(one).zfill(2) for one in known[: len(texts)]]:
            return [label for label, _ in parts], [text.strip() for _, text in parts]
    return None


def right(row: Row, name: str, listed: Labelled, where: str) -> int:
    """Returns the place of the right option, which a row gives as a label or an index. Raises UserError."""
    labels, texts = listed
    given = field(row, name, where)
    answer = answer_index(text_of(given, name, where), labels)
    if answer is None or not 0 <= answer < len(texts):
        raise UserError(f"{where}: answer {shown(given)} is none of the {len(texts)} options")
    return answer


def answer_index(text: str, labels: Sequence[str]) -> int | None:
    """Returns the place of the answer, read as a label first (so "1" is the option labelled 1), then as an index.

    A letter may stand in another case or in brackets ("c", "(C)").
    """
    if text in labels:
        return labels.index(text)
    folded = [label.upper() for label in labels]
    if len(set(folded)) == len(folded) and letter(text) in folded:
        return folded.index(letter(text) or "")
    return int(text) if text.isdecimal() else None


def numbered(text: str) -> tuple[str, int]:
    """Returns what stands before the number at the end of an id, and the number; -1 if it ends in none."""
    found = re.fullmatch(r"(.*?)([0-9]{1,18})", text, re.DOTALL)
    return (found[1], int(found[2])) if found else (text, -1)


class Ids:
    """Names problems by a field of the source, or by row number. Raises UserError for a repeated name."""

    def __init__(self, name: str | None, where: str) -> None:
        self.name = name
        self.where = where
        self.seen: dict[str, int] = {}

    def __call__(self, row: Row, number: int) -> str:
        if self.name is None:
            return f"row{number}"
        at = f"{self.where}, row {number}"
        found = text_of(field(row, self.name, at), self.name, at)
        if self.seen.setdefault(found, number) != number:
            raise UserError(
                f"{self.where}: rows {self.seen[found]} and {number} have the same id {found!r}; "
                "name another field, or none"
            )
        return found
