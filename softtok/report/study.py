"""A study as tables and figures see it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from softtok.report.paper import Names


class Row(NamedTuple):
    """What a line of a table or of a figure stands for: its seeds are the replicates."""

    model: str
    train_set: str
    training_mode: str


class Family(NamedTuple):
    """Inference modes that differ in sampling only: `X-greedy` and `X-sample` (or `X-sample-4`) make the family X, and
    so do two modes of hard tokens, one greedy and one sampled, that are left over alone, whatever they are called."""

    greedy: str | None = None
    sample: str | None = None


@dataclass(frozen=True)
class Study:
    """A report spec as tables and figures see it: names in the order in which they are shown."""

    rows: tuple[Row, ...]
    test_sets: tuple[str, ...]
    choice_sets: tuple[str, ...]
    inference_modes: Mapping[str, Mapping[str, Any]]
    paper: Names = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)  # its sections as the report shows them
    planned: Mapping[str, Collection[str]] = field(default_factory=dict)  # test set -> the inference modes met there

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Study:
        order = spec["order"]
        places = [
            {name: place for place, name in enumerate(names)}
            for names in (order["models"], ["none", *order["train_sets"]], ["base", *order["training_modes"]])
        ]
        rows = {Row(run["model"], run["train_set"], run["mode"]) for run in spec["runs"]}
        modes = spec.get("config", {}).get("inference_sets")
        return cls(
            rows=tuple(sorted(rows, key=lambda row: [place[name] for place, name in zip(places, row, strict=True)])),
            test_sets=tuple(name for name in order["test_sets"] if name in spec["tests"]),
            choice_sets=tuple(name for name in order["choice_sets"] if name in spec["choices"]),
            inference_modes=spec["inference_modes"],
            paper=spec.get("paper", {}),
            config=spec.get("config", {}),
            planned={}
            if modes is None
            else {
                test_set: {mode for inference_set in sets for mode in modes[inference_set]}
                for test_set, sets in spec["tests"].items()
            },
        )

    def samples(self, inference_mode: str) -> int:
        """Samples per problem."""
        return int(self.inference_modes[inference_mode]["samples"])

    def plans(self, test_set: str, inference_mode: str) -> bool:
        """Whether any run is tested in this mode on this test set: grid blocks may give sets modes of their own."""
        return inference_mode in self.planned.get(test_set, self.inference_modes)

    def families(self) -> dict[str, Family]:
        """Families of inference modes by name, in the configuration's order."""
        found: dict[str, Family] = {}
        for mode in self.inference_modes:
            name, *suffix = re.split("-(greedy|sample)(?=-|$)", mode)
            sampled = self.samples(mode) > 1 or "sample" in suffix or self._plain_hard(mode, sampled=True)
            slot = "sample" if sampled else "greedy"
            plain = f"{name}-{slot}"  # has the first right to its place, and a place has room for one
            if (plain in self.inference_modes and plain != mode) or getattr(found.get(name, Family()), slot):
                name = mode
            found[name] = found.get(name, Family())._replace(**{slot: mode})
        greedy = [name for name, (mode, other) in found.items() if not other and self._plain_hard(mode, sampled=False)]
        sample = [name for name, (other, mode) in found.items() if not other and self._plain_hard(mode, sampled=True)]
        if greedy and sample:  # a family by its settings, in the place and with the name of one of the two
            kept, other = (sample[0], greedy[0]) if sample[0] == "hard" else (greedy[0], sample[0])
            found[kept] = Family(found[greedy[0]].greedy, found[sample[0]].sample)
            del found[other]
        return found

    def _plain_hard(self, mode: str | None, sampled: bool) -> bool:
        """Whether a mode feeds hard tokens and nothing mixed with them, and draws them (`sampled`) or does not."""
        settings = self.inference_modes[mode] if mode else {}
        hard = settings.get("tokens") == "hard" and settings.get("inputs_beta") is None
        return hard and (settings.get("temperature", 0) > 0) == sampled

    def hard_family(self) -> Family:
        """The family whose CoT tokens are hard: the one called so, else the first such; empty when there is none."""
        families = self.families()
        hard = [
            family
            for family in families.values()
            if any(mode and self.inference_modes[mode]["tokens"] == "hard" for mode in family)
        ]
        return families.get("hard") or (hard[0] if hard else Family())

    def pairs(self) -> list[tuple[str, str]]:
        """The (model, train set) pairs that were trained; for a study of base models alone, (model, "none")."""
        trained = list(dict.fromkeys((row.model, row.train_set) for row in self.rows if row.training_mode != "base"))
        return trained or [(row.model, row.train_set) for row in self.rows]

    def rows_of(self, model: str, train_set: str) -> list[Row]:
        """The rows that are compared with each other: the model's base and its training modes on one train set."""
        return [row for row in self.rows if row.model == model and row.train_set in ("none", train_set)]
