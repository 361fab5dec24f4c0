"""What one process writes as JSON and another reads back: the base of settings and specs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from softtok.storage.files import canonical_json


def is_none(value: object) -> bool:
    """Says for `exclude_if` that a key is not written if it is null: what was written before it existed stays equal."""
    return value is None


class Record(BaseModel):
    """A value that does not change. Unknown keys are errors, and types are not guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def as_json(self) -> str:
        """One line of JSON with sorted keys: equal records give equal text."""
        return canonical_json(self.model_dump(mode="json"))
