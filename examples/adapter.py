"""An adapter of one's own: makes a problem of a row that no `question:` and `gold:` fields describe.

A row has its question in two fields, and its gold with a unit behind the number:

    {"Body": "Ida has 4 apples and gets 5.", "Question": "How many apples has she?", "Answer": "9 (apples)"}

In config.yaml:

    train_sets:
      stories: {file: {path: examples/stories_train.jsonl}, adapter: "examples/adapter.py:story"}
"""

from typing import Any


def story(row: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the joined question, the number and, for rewards that want it, the unit; None for a row without one."""
    number, _, unit = row["Answer"].partition(" (")
    if not number.isdecimal():
        return None
    return {"question": f"{row['Body']} {row['Question']}", "gold": number, "unit": unit.rstrip(")")}
