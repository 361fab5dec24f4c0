"""A job takes a GPU that no other job holds."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from softtok.config.settings import DeviceSettings, RuntimeSettings
from softtok.errors import UserError
from softtok.models.base_model import make_model
from softtok.models.devices import announce, choose_device, gpu_names, peak_memory_mb, say, take_free
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from tests.support.specs import folder_model

JOB = """
import sys
from pathlib import Path
from softtok.models.devices import take_free
names = ("0", "1")
print(take_free(names, Path(sys.argv[1])), take_free(names, Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_jobs_side_by_side_take_different_gpus_and_give_them_back(tmp_path: Path) -> None:
    jobs = []

    def start() -> str:
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        jobs.append(job)
        assert job.stdout is not None
        return job.stdout.readline().strip()

    try:
        assert start() == "0 0", "a job keeps the one it has"
        assert start() == "1 1"
        assert start() == "0 0", "more jobs than GPUs share the first"
        for job in jobs:
            job.kill()
            job.wait()
        assert start() == "0 0", "a killed job holds nothing"
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


def test_gpus_are_told_apart_by_what_the_scheduler_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert gpu_names(2) == ("3", "5")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_names(2) == ("0", "1")


def test_a_lock_that_cannot_be_opened_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / f"softtok-gpu-{os.getuid()}-a.lock").mkdir()
    assert take_free(("a", "b"), tmp_path) == 1


def test_locks_are_a_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all jobs of a second user would share the first GPU: another's files cannot be opened."""
    for name in ("a", "b"):
        (tmp_path / f"softtok-gpu-{os.getuid()}-{name}.lock").mkdir()
    monkeypatch.setattr("os.getuid", lambda: 4242)
    take_free.cache_clear()
    assert take_free(("a", "b"), tmp_path) == 0
    assert (tmp_path / "softtok-gpu-4242-a.lock").stat().st_mode & 0o777 == 0o600


def test_auto_is_a_free_gpu_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softtok.models.devices.take_free", lambda names: len(names) - 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device(RuntimeSettings(gpus=1)) == torch.device("cuda", 3)
    assert choose_device(RuntimeSettings()) == torch.device("cpu"), "a job that asks for no GPU leaves it to others"
    assert choose_device(RuntimeSettings(gpus=1, device="cuda")) == torch.device("cuda", 3)
    assert choose_device(RuntimeSettings(gpus=1, device="cuda:1")) == torch.device("cuda", 1)


def test_a_job_says_what_it_runs_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("softtok.models.devices.device_name", lambda device: f"the {device} here")
    for _ in range(2):  # a job that loads two models says it once
        assert announce(choose_device(RuntimeSettings()), torch.float32) == "the cpu here, fp32"
    assert capsys.readouterr().err == "softtok: on the cpu here, fp32\n"
    assert announce(torch.device("cuda", 1), torch.bfloat16) == "the cuda:1 here, bf16"
    assert capsys.readouterr().err == "softtok: on the cuda:1 here, bf16\n"


@pytest.mark.parametrize(
    ("asked", "precision"),
    [({"gpus": 1}, "bf16"), ({"gpus": 1, "precision": "fp32"}, "fp32"), ({}, "auto"), ({"device": "cuda:1"}, "bf16")],
)
def test_models_are_fetched_and_probed_without_a_gpu(
    asked: dict[str, Any], precision: str, tiny_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the precision of the jobs on a GPU: in fp32 a large model may need more memory than there is."""
    seen: list[DeviceSettings] = []

    def watched(folder: Path, device: DeviceSettings) -> LanguageModel:
        seen.append(device)
        return load(folder, device)

    monkeypatch.setattr("softtok.models.loading.load", watched)
    make_model(folder_model(tiny_toy), RuntimeSettings(**asked, cuda_graphs=bool(asked)), tmp_path / "made", None)
    (runtime,) = seen
    assert choose_device(runtime) == torch.device("cpu")
    assert runtime.precision == precision and not runtime.cuda_graphs


def test_devices_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(RuntimeSettings(device="cpu")).type == "cpu"
    with pytest.raises(ValidationError, match=r"device: 'gpu7' is not a device"):
        RuntimeSettings(device="gpu7")
    assert choose_device(RuntimeSettings(device="cpu", gpus=1)).type == "cpu"
    for asked in ({"device": "cuda:0"}, {"device": "cuda"}, {"gpus": 1}):
        with pytest.raises(UserError, match=r"PyTorch sees none here: PyTorch \d.*built for.*driver"):
            choose_device(RuntimeSettings(**asked))


def test_peak_memory_counts_what_was_held_and_freed() -> None:
    before = peak_memory_mb(torch.device("cpu"))
    size = int(before) + 256  # MiB; more than was ever held
    held = torch.ones(size * 2**18)
    del held
    after = peak_memory_mb(torch.device("cpu"))
    assert size <= after < before + size + 64
