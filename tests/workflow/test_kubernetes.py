"""The profile for Kubernetes, as far as a dry run goes: no cluster is asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support.project import BIN, ROOT, Project, counts, shipped

pytestmark = pytest.mark.cluster

PLUGINS = BIN.parent / "plugins" / "kubernetes"  # of Snakemake, where `make test-slurm` puts them


@pytest.fixture
def project(tmp_path: Path) -> Project:
    if not PLUGINS.is_dir():
        pytest.skip("Snakemake's plugin for Kubernetes is not installed: make test-slurm")
    config = shipped()
    config["runtime"] |= {"gpus": 1, "state_folder": "/state"}
    return Project.create(tmp_path / "project", config, PYTHONPATH=str(PLUGINS))


def words(folder: Path) -> list[str]:
    """Returns the options of a dry run, with a folder in the place of the bucket, which would be asked for files."""
    bucket = folder / "bucket"
    bucket.mkdir()
    storage = ["--default-storage-provider", "fs", "--default-storage-prefix", str(bucket)]
    return ["-n", "--workflow-profile", "profiles/kubernetes", *storage]


def test_a_study_is_planned_as_pods(project: Project, tmp_path: Path) -> None:
    """All of its jobs, and what each that runs a model asks for."""
    listed = project.snakemake(*words(tmp_path), "-p", "--quiet", "host")
    assert counts(listed)["train"] == 9 and counts(listed)["evaluate"] == 20
    for rule in ("train", "evaluate"):
        asked = re.findall(rf"^rule {rule}:\n(?: .*\n)*?    resources: (.*)", listed.stdout, re.MULTILINE)
        assert asked
        for resources in asked:
            assert {"gpu=1", "gpu_manufacturer=nvidia", "disk_mb=120000"} <= set(resources.split(", "))
    (command, *_) = re.findall(r"exec softtok train .*", listed.stdout)
    assert f"--out {Path('.snakemake/storage/fs')}" in command, "what jobs declare travels through the bucket"
    assert '"state_folder":"/state"' in command


def test_a_volume_of_the_profile_is_known_to_the_plugin(project: Project, tmp_path: Path) -> None:
    """The line that the profile offers as a comment, without its mark."""
    path = project.folder / "profiles/kubernetes/profile.yaml"
    text = path.read_text()
    (line,) = re.findall(r"^# (kubernetes-persistent-volumes: .*)$", text, re.MULTILINE)
    path.write_text(f"{text}\n{line}\n")
    (volume,) = yaml.safe_load(line)["kubernetes-persistent-volumes"]
    assert volume.endswith(":/state")
    assert project.snakemake(*words(tmp_path), "-q").returncode == 0
    path.write_text(f"{text}\n{line.replace(':/state', '')}\n")
    told = project.snakemake(*words(tmp_path / "project"), "-q")
    assert told.returncode != 0 and "Invalid persistent volume spec" in told.stdout


def test_the_profile_says_what_is_lost_with_a_pod() -> None:
    text = (ROOT / "profiles/kubernetes/profile.yaml").read_text()
    assert "starts anew" in text and "state_folder: /state" in text
