"""A study as its report needs it, made once from the report's spec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from softtok.config.settings import SampledMode
from softtok.config.specs import ReportRun, ReportSpec
from softtok.report.paper import Names


class Row(NamedTuple):
    """A line of a table or figure; its seeds are the replicates."""

    model: str
    train_set: str
    training_mode: str


class Family(NamedTuple):
    """Two inference modes that differ only in sampling.

    `X-greedy` and `X-sample` (or `X-sample-4`) form the family X. Two modes of hard tokens with any names, one greedy
    and one sampled, form a family too, if neither is in another one.
    """

    greedy: str | None = None
    sample: str | None = None


def row_of(run: ReportRun) -> Row:
    return Row(run.model, run.train_set, run.training_mode)


@dataclass(frozen=True)
class Study:
    """A study as its report's spec plans it; names are in the order in which they are shown."""

    spec: ReportSpec

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        order = self.spec.order
        places = [
            {name: place for place, name in enumerate(names)}
            for names in (order["models"], ["none", *order["train_sets"]], ["base", *order["training_modes"]])
        ]
        rows = {row_of(run) for run in self.spec.runs}
        return tuple(sorted(rows, key=lambda row: [place[name] for place, name in zip(places, row, strict=True)]))

    @cached_property
    def runs(self) -> tuple[ReportRun, ...]:
        """The runs in the order of their rows, then by seed."""
        places = {row: place for place, row in enumerate(self.rows)}
        return tuple(sorted(self.spec.runs, key=lambda run: (places[row_of(run)], run.seed)))

    @cached_property
    def planned(self) -> dict[str, set[str]]:
        """The inference modes of any run on each test set; grid blocks may have different modes."""
        planned: dict[str, set[str]] = {}
        for run in self.spec.runs:
            for test_set, inference_sets in run.tests.items():
                for name in inference_sets:
                    planned.setdefault(test_set, set()).update(self.spec.inference_sets[name])
        return planned

    @property
    def test_sets(self) -> tuple[str, ...]:
        return tuple(self.spec.order["test_sets"])

    @property
    def choice_sets(self) -> tuple[str, ...]:
        return tuple(self.spec.order["choice_sets"])

    @property
    def inference_modes(self) -> Mapping[str, SampledMode]:
        return self.spec.inference_modes

    @property
    def paper(self) -> Names:
        return self.spec.paper

    @cached_property
    def _settings(self) -> dict[Row, dict[str, Any]]:
        return {
            row_of(run): dict(run.mode) | dict(run.training)
            for run in self.spec.runs
            if run.mode is not None and run.training is not None
        }

    def settings(self, row: Row) -> Mapping[str, Any]:
        """Returns the token mode and training settings of a row's runs; empty for an untouched model."""
        return self._settings.get(row, {})

    def samples(self, inference_mode: str, test_set: str | None = None) -> int:
        """Samples per problem on one test set, or the most on any."""
        drawn = self.inference_modes[inference_mode].samples
        tested = [test_set] if test_set else [name for name in self.test_sets if self.plans(name, inference_mode)]
        return max((min(drawn, self.spec.samples.get(name, drawn)) for name in tested), default=drawn)

    def counts(self, inference_mode: str, test_set: str, k: int) -> bool:
        """Whether pass@k on a test set is a number of problems; of more samples than k it is a mean over them."""
        return self.samples(inference_mode, test_set) == k

    def plans(self, test_set: str, inference_mode: str) -> bool:
        """Whether any run is tested in this mode on this test set."""
        return inference_mode in self.planned.get(test_set, ())

    def families(self) -> dict[str, Family]:
        """Returns families of inference modes by name, in the configuration's order."""
        found: dict[str, Family] = {}
        for mode in self.inference_modes:
            name, *suffix = re.split("-(greedy|sample)(?=-|$)", mode)
            sampled = self.samples(mode) > 1 or "sample" in suffix or self._plain_hard(mode, sampled=True)
            slot = "sample" if sampled else "greedy"
            plain = f"{name}-{slot}"  # takes precedence; a place holds one mode
            if (plain in self.inference_modes and plain != mode) or getattr(found.get(name, Family()), slot):
                name = mode
            found[name] = found.get(name, Family())._replace(**{slot: mode})
        greedy = [name for name, (mode, other) in found.items() if not other and self._plain_hard(mode, sampled=False)]
        sample = [name for name, (other, mode) in found.items() if not other and self._plain_hard(mode, sampled=True)]
        if greedy and sample:  # they form a family, with the place and name of one of them
            kept, other = (sample[0], greedy[0]) if sample[0] == "hard" else (greedy[0], sample[0])
            found[kept] = Family(found[greedy[0]].greedy, found[sample[0]].sample)
            del found[other]
        return found

    def _plain_hard(self, mode: str | None, sampled: bool) -> bool:
        """Whether a mode feeds unmixed hard tokens, and samples them or not (`sampled`)."""
        if mode is None:
            return False
        settings = self.inference_modes[mode]
        return settings.feeds_tokens and settings.deterministic != sampled

    def hard_family(self) -> Family:
        """Returns the family with hard CoT tokens: the one named hard, else the first; empty if there is none."""
        families = self.families()
        hard = [
            family for family in families.values() if any(mode and self.inference_modes[mode].hard for mode in family)
        ]
        return families.get("hard") or (hard[0] if hard else Family())

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the trained (model, train set) pairs; for a study of base models alone, (model, "none")."""
        trained = list(dict.fromkeys((row.model, row.train_set) for row in self.rows if row.training_mode != "base"))
        return trained or [(row.model, row.train_set) for row in self.rows]

    def rows_of(self, model: str, train_set: str) -> list[Row]:
        """Returns rows to compare with each other: the model's base and its training modes on one train set."""
        return [row for row in self.rows if row.model == model and row.train_set in ("none", train_set)]
