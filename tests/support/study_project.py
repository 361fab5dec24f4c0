"""A project of one study whose finished runs were made up."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from softtok.config.specs import ReportSpec
from tests.support.project import Project

STUDY = "small"


class StudyProject(Project):
    """A project of one study, with finished runs at the paths that the workflow would use."""

    @cached_property
    def spec(self) -> ReportSpec:
        return self.grid().studies[STUDY].spec

    def run(self, mode: str, seed: int) -> Path:
        return self.folder / next(r.path for r in self.spec.runs if (r.training_mode, r.seed) == (mode, seed))
