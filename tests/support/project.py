"""Throw-away projects: a folder with config.yaml and, where a test needs it, a copy of the workflow."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import yaml

from softtok.config.grid import Grid, Study
from softtok.config.load import read

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def shipped() -> dict[str, Any]:
    """Returns the repository's config.yaml."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    return config


class Project:
    """A folder with config.yaml; `environment` is added to that of its `snakemake`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.environment = folder, environment

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any], **environment: str) -> Self:
        """Makes a folder with a configuration and a copy of the workflow."""
        folder.mkdir()
        for name in ("workflow", "profiles"):
            shutil.copytree(ROOT / name, folder / name)
        for name in ("Snakefile", "environment.yml"):
            shutil.copy(ROOT / name, folder)
        project = cls(folder, **environment)
        project.config = config
        return project

    def copy(self, folder: Path) -> Self:
        """Copies everything to a new folder, with metadata and times."""
        return type(self)(shutil.copytree(self.folder, folder), **self.environment)

    @property
    def path(self) -> Path:
        """The configuration's file."""
        return self.folder / "config.yaml"

    @property
    def results(self) -> Path:
        """The folder of everything that is made."""
        return self.folder / "results"

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as it is in the file; set it to write the file."""
        config: dict[str, Any] = yaml.safe_load(self.path.read_text())
        return config

    @config.setter
    def config(self, config: dict[str, Any]) -> None:
        self.path.write_text(yaml.safe_dump(config, sort_keys=False))

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes the configuration."""
        config = self.config
        change(config)
        self.config = config

    def grid(self, data_root: Path | None = None) -> Grid:
        """Returns the grid of the configuration."""
        return Grid(read(self.path, (), str(data_root) if data_root else None))

    def write(self, *paths: str, text: str = "1234") -> None:
        """Writes small files below the folder."""
        for path in paths:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)

    def finish(self, study: Study, grid: Grid) -> None:
        """Writes a small file in the place of every output of a study but its report, and of all data of a grid."""
        self.write(*(f"{stem}{suffix}" for stem in grid.data for suffix in (".parquet", ".json")))
        self.write(*(f"{run.model.folder}/model.json" for run in study.runs.values()))
        self.write(*(f"{run}/checkpoint/model.safetensors" for run in study.runs))
        self.write(
            *study.run_files("manifest.json"), *study.run_files("metrics.jsonl"), *study.choice_files(".parquet")
        )
        for suffix in (".parquet", ".entropy.csv", ".thoughts.parquet", ".cost.json"):
            self.write(*study.evaluation_files(suffix))
        self.write(*study.choice_files(".cost.json"))

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Starts `snakemake` as in a shell whose environment is not activated."""
        return self.command(str(BIN / "snakemake"), *words, **environment)

    def timed(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Starts the script that builds a study and tells how long it takes."""
        return self.command(str(BIN / "python"), "workflow/scripts/timed.py", *words, **environment)

    def command(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a command in the folder."""
        return subprocess.Popen(
            list(words),
            cwd=self.folder,
            env={**os.environ, "PATH": "/usr/bin:/bin", **self.environment, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def snakemake(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs `snakemake` to its end; `stdout` is all that it printed."""
        with self.start(*words, **environment) as process:
            try:
                printed, _ = process.communicate(timeout=1800)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, printed)

    def build(self, *words: str) -> str:
        """Runs `snakemake`, asserts that all went well, and returns what it printed."""
        done = self.snakemake(*words)
        logs = "\n".join(f"{log}: {log.read_text()[-2000:]}" for log in self.folder.glob("results/logs/**/*.log"))
        assert done.returncode == 0, done.stdout[-4000:] + logs
        return done.stdout

    def build_interrupted(self, first: str, *words: str) -> None:
        """Builds in two attempts: the first one is stopped, as by Ctrl-C, when a file matches the pattern `first`.

        Asserts that no training that had finished is repeated. (Snakemake makes the outputs of jobs again whose end it
        did not see; the times in their metrics tell that no step was repeated.)
        """
        process = self.start(*words)
        deadline = time.monotonic() + 600
        while not list(self.folder.glob(first)):
            assert process.poll() is None and time.monotonic() < deadline, process.stdout and process.stdout.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
        assert process.returncode != 0
        finished = {path: path.read_text() for path in self.folder.glob("results/runs/**/metrics.jsonl")}
        assert finished
        self.build(*words)
        assert {path: path.read_text() for path in finished} == finished, "what was finished is not done again"


def dry_run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Lists the jobs of the shipped workflow and configuration, as if its results lay in a folder."""
    where = ["--directory", str(folder), "--configfile", str(ROOT / "config.yaml")]
    return Project(ROOT, PYTHONPATH=str(ROOT)).snakemake("-n", *where, *words, **environment)


def counts(listed: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Returns the number of jobs of each rule in a table of `snakemake -n`."""
    assert listed.returncode == 0, listed.stdout
    table = listed.stdout.split("job ", 1)[1].split("total", 1)[0]
    return {line.split()[0]: int(line.split()[1]) for line in table.split("\n")[2:] if line.strip()}
