"""A study on a real Slurm of one node: time limits, cancelled jobs and a killed Snakemake change no result."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from softtok.storage.files import read_json
from softtok.storage.provenance import attempts
from tests.support.damage import assert_same_evaluation, evaluation
from tests.support.project import BIN, Project
from tests.support.slurm import Slurm, UnavailableError, slurm
from tests.support.training_runs import lines

pytestmark = pytest.mark.cluster

PLUGINS = BIN.parent / "plugins" / "slurm"  # of Snakemake, where `make test-slurm` puts them
SOON_S = 600  # on a busy machine
STUDY = """
run: [small]
runtime: {runtime_min: 2, memory_mb: 1000, save_every: 1}
models:
  toy:
    toy: {width: 32, layers: 2, heads: 2, mlp_width: 64, steps: 30}
    training: {steps: 8, prompts_per_step: 2, samples_per_prompt: 8, warmup_steps: 1, validation_problems: 4}
train_sets:
  sums: {toy: {task: sums, problems: 40}, training: {max_cot_tokens: 24}, exclude: [sums]}
test_sets:
  sums: {toy: {task: sums, problems: 4}, evaluation: {max_cot_tokens: 24}}
training_modes:
  hard: {tokens: hard}
  soft: {tokens: soft, temperature: 0.5, noise_scale: 0.33}
inference_modes:
  hard-sample: {tokens: hard, samples: 4}
inference_sets:
  one: [hard-sample]
studies:
  small:
    grid: [{models: [toy], train_sets: [sums]}]
    training_modes: [hard, soft]
    seeds: [0]
    test_sets: [sums]
    inference_sets: [one]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    """A Slurm in a folder of its own, outside of pytest's: munge wants folders that others may pass."""
    if not PLUGINS.is_dir():
        pytest.skip("Snakemake's plugin for Slurm is not installed: make test-slurm")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as stack:
        Path(name).chmod(0o711)
        try:
            found = stack.enter_context(slurm(Path(name)))
        except UnavailableError as why:
            pytest.skip(f"no Slurm here: {why}")
        yield found


def test_a_job_runs(cluster: Slurm) -> None:
    assert cluster.run("srun", "echo", "it runs") == "it runs\n"


def shorten_times(project: Project) -> None:
    """Writes the profile for Slurm with shorter times, for a Slurm that writes no accounts."""
    profile = yaml.safe_load((project.folder / "profiles/slurm/profile.yaml").read_text())
    profile["default-resources"]["slurm_extra"] = "--signal=TERM@30"
    profile |= {"slurm-init-seconds-before-status-checks": 3, "slurm-status-command": "squeue", "latency-wait": 20}
    folder = project.folder / "profiles/test"
    folder.mkdir()
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile))


@contextlib.contextmanager
def snakemake(project: Project, cluster: Slurm, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts Snakemake, whose words go to a file; it is killed if the block fails."""
    environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(PLUGINS)}
    words = [str(BIN / "snakemake"), "--workflow-profile", "profiles/test"]
    with open(out, "wb") as file:
        process = subprocess.Popen(words, cwd=project.folder, env=environment, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Training:
    """One training of the study, as its folder shows it."""

    def __init__(self, project: Project, mode: str) -> None:
        (folder,) = (path for path in project.grid().runs if f"/{mode}/" in path)
        self.run = project.folder / folder
        self.log = self.run / ".state" / "attempts.jsonl"

    def events(self) -> list[str]:
        return [event["event"] for event in attempts(self.log)]

    def has_saved(self) -> bool:
        return (self.run / ".state" / "step").exists()

    def pid(self) -> int:
        """Returns the process of the attempt that was noted last."""
        return int(attempts(self.log)[-1]["pid"])

    def slurm_job(self) -> str:
        """Returns the number that Slurm has given to this process's job."""
        words = Path(f"/proc/{self.pid()}/environ").read_bytes().decode().split("\0")
        return next(word.removeprefix("SLURM_JOB_ID=") for word in words if word.startswith("SLURM_JOB_ID="))

    def hold(self) -> None:
        os.kill(self.pid(), signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets the process go on; Slurm may have done so."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid(), signal.SIGCONT)

    def was_stopped(self) -> bool:
        return "interrupted" in self.events()

    def is_asked_to_stop(self) -> bool:
        """Whether SIGTERM waits for the process, which is held, or has ended it."""
        try:
            status = Path(f"/proc/{self.pid()}/status").read_text()
        except OSError:
            return self.was_stopped()
        pending = [int(mask, 16) for mask in re.findall(r"(?:Sig|Shd)Pnd:\s*(\w+)", status)]
        return any(mask >> (signal.SIGTERM - 1) & 1 for mask in pending)


def wait(until: Callable[[], Any], process: subprocess.Popen[bytes], out: Path, seconds: float = SOON_S) -> None:
    """Waits until something is true, while Snakemake runs."""
    deadline = time.monotonic() + seconds
    while not until():
        assert process.poll() is None and time.monotonic() < deadline, out.read_text()[-6000:]
        time.sleep(0.05)


def assert_same_results(found: Project, expected: Project) -> None:
    """Compares every file of data, runs and report, but for times, attempts and where something was made."""
    for run in expected.grid().studies["small"].runs:
        one, other = found.folder / run, expected.folder / run
        for path in (other / "checkpoint").iterdir():
            assert (one / "checkpoint" / path.name).read_bytes() == path.read_bytes(), path
        assert lines(one) == lines(other)
        for name in ("steps", "best_step", "best_validation", "checkpoint_sha256"):
            assert read_json(one / "manifest.json")[name] == read_json(other / "manifest.json")[name], (run, name)
        (thoughts,) = other.glob("eval/*/*.thoughts.parquet")
        (rows,) = set(other.glob("eval/*/*.parquet")) - {thoughts}
        assert_same_evaluation(evaluation(one / rows.relative_to(other)), evaluation(rows), run)
    data = [path for path in (expected.results / "data").rglob("*.parquet")]
    report = expected.results / "reports" / "small"
    same = [*data, report / "metrics.csv", report / "claims.csv", *(report / "tables").glob("[!.]*.md")]
    assert len(same) >= 6
    for path in same:
        assert (found.folder / path.relative_to(expected.folder)).read_bytes() == path.read_bytes(), path


def test_stops_of_every_kind_change_no_result(cluster: Slurm, tmp_path: Path) -> None:
    local = Project.create(tmp_path / "local", yaml.safe_load(STUDY))
    project = Project.create(tmp_path / "cluster", yaml.safe_load(STUDY))
    shorten_times(project)
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    cancelled, timed = Training(project, "hard"), Training(project, "soft")
    with snakemake(project, cluster, first) as process:
        held: set[Training] = set()

        def hold_both() -> bool:
            for training in {cancelled, timed} - held:
                if training.has_saved():
                    training.hold()
                    held.add(training)
            return len(held) == 2

        wait(hold_both, process, first)
        cluster.run("scancel", cancelled.slurm_job())
        cancelled.go_on()
        wait(cancelled.was_stopped, process, first)
        local.build("--cores", "2")  # while the other training waits for its time limit, and Slurm for it
        wait(timed.is_asked_to_stop, process, first)
        timed.go_on()
        wait(lambda: timed.events()[:3] == ["start", "interrupted", "start"], process, first)
        process.kill()
    told = first.read_text()
    assert told.count("softtok: stopped by SIGTERM; progress is saved (results/logs/runs/toy/sums/") == 2, told[-6000:]
    assert "Error in rule" not in told and "--spec" not in told
    unlock = [str(BIN / "snakemake"), "--unlock"]
    subprocess.run(unlock, cwd=project.folder, check=True, capture_output=True)
    with snakemake(project, cluster, second) as process:
        assert process.wait(SOON_S) == 0, second.read_text()[-6000:]
    assert cancelled.events()[:2] == ["start", "interrupted"] and "failed" not in cancelled.events() + timed.events()
    assert_same_results(project, local)
