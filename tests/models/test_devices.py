"""A job takes a GPU that no other job holds, or waits for one."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from softtok.config.settings import DeviceSettings, RuntimeSettings
from softtok.errors import UserError
from softtok.models import devices
from softtok.models.base_model import make_model
from softtok.models.devices import announce, card_name, choose_device, peak_memory_mb, say, take_free
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.storage import machine
from softtok.storage.locks import EXIT_INTERRUPTED, LOCK_POLL_S
from tests.support import nvidia
from tests.support.specs import folder_model

JOB = """
import sys
from pathlib import Path
from softtok.models.devices import take_free
from softtok.storage.locks import Interruption
cards = sys.argv[2:]
with Interruption():
    print(cards[take_free(cards, Path(sys.argv[1]))], cards[take_free(cards, Path(sys.argv[1]))], flush=True)
    sys.stdin.read()
"""
Process = subprocess.Popen[str]
ENDS_S, MOST_S = 20, 90


@pytest.fixture(autouse=True)
def no_lock_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lock files are the test's own, and what it locks is free again at its end."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(devices, "HELD", {})
        yield
        for lock in devices.HELD.values():
            os.close(lock)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts jobs that take one of these cards."""
    jobs: list[Process] = []

    def started(*cards: str) -> Process:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        jobs.append(subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path), *cards], text=True, **pipes))
        timers.append(threading.Timer(MOST_S, jobs[-1].kill))  # a test that reads a line that never comes fails, too
        timers[-1].start()
        return jobs[-1]

    timers: list[threading.Timer] = []
    yield started
    for timer, job in zip(timers, jobs, strict=True):
        timer.cancel()
        job.kill()
        job.communicate()


def line(job: Process, stream: str = "stdout") -> str:
    """Returns the next line of a job."""
    found: str = getattr(job, stream).readline().strip()
    return found


def test_jobs_side_by_side_take_different_gpus_and_a_further_one_waits(start: Callable[..., Process]) -> None:
    first, second = start("0", "1"), start("0", "1")
    assert sorted(map(line, (first, second))) == ["0 0", "1 1"], "a job keeps the one it has"
    third = start("0", "1")
    assert line(third, "stderr") == "softtok: waiting for a GPU: other softtok jobs hold 0, 1"
    time.sleep(2.5 * LOCK_POLL_S)
    assert third.poll() is None, "it waits, and does not share"
    first.kill()
    first.wait()
    assert line(third) in ("0 0", "1 1"), "a killed job holds nothing"
    second.kill()
    third.kill()
    assert third.communicate()[1] == "", "it says once that it waits"


def test_a_job_that_waits_for_a_gpu_ends_at_a_signal(start: Callable[..., Process]) -> None:
    assert line(start("0")) == "0 0"
    asked = start("0")
    assert "waiting for a GPU" in line(asked, "stderr")
    asked.send_signal(signal.SIGTERM)
    assert asked.wait(ENDS_S) == EXIT_INTERRUPTED


def test_one_card_is_one_lock_however_jobs_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By index, UUID or MIG slice: what PyTorch sees first is another card in each job, and its address tells which."""
    names = []
    for visible in ((0x65, 0x66), (0x66,), (0x66, 0x65)):
        nvidia.show(monkeypatch, *visible)
        names.append([card_name(place) for place in range(len(visible))])
    assert names == [["0000:65:00", "0000:66:00"], ["0000:66:00"], ["0000:66:00", "0000:65:00"]]
    nvidia.show(monkeypatch, "GPU-5d5ba0d6")
    assert card_name(0) == "GPU-5d5ba0d6", "a build that tells no addresses"


def test_a_named_gpu_takes_its_lock_too(monkeypatch: pytest.MonkeyPatch, start: Callable[..., Process]) -> None:
    nvidia.show(monkeypatch, 0x65, 0x66)
    assert choose_device(RuntimeSettings(gpus=1, device="cuda:1")) == torch.device("cuda", 1)
    assert choose_device(RuntimeSettings(gpus=1, device="cuda:1")) == torch.device("cuda", 1), "of a second model"
    assert line(start("0000:66:00", "0000:65:00")) == "0000:65:00 0000:65:00"
    assert "waiting for a GPU" in line(start("0000:66:00"), "stderr")
    with pytest.raises(UserError, match=r"device: cuda:2 is not there; PyTorch sees 2 GPUs"):
        choose_device(RuntimeSettings(gpus=1, device="cuda:2"))


def test_a_card_on_which_others_compute_comes_last_and_is_not_shared_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = [f"{n}, GPU-{n}, NVIDIA H100, 580.1, 81559, 81559, 9.0, 00000000:6{n}:00.0" for n in (5, 6)]
    nvidia.install(tmp_path / "bin", monkeypatch, cards, ["GPU-5, 4242, /usr/bin/python3, 36000"])
    assert take_free(["0000:65:00", "0000:66:00"], tmp_path) == 1
    assert capsys.readouterr().err == ""
    assert take_free(["0000:65:00"], tmp_path) == 0
    assert capsys.readouterr().err == "softtok: shares GPU 0000:65:00 with python3 (pid 4242, 35.2 GiB)\n"


def test_a_lock_that_cannot_be_opened_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine.gpu_lock("a", tmp_path).mkdir()
    assert take_free(("a", "b"), tmp_path) == 1
    assert capsys.readouterr().err == ""
    assert take_free(("a",), tmp_path) == 0
    assert "softtok: takes GPU a without a lock, so another job may share it (" in capsys.readouterr().err


def test_locks_are_a_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the jobs of a second user would find no lock that they can open."""
    for name in ("a", "b"):
        machine.gpu_lock(name, tmp_path).mkdir()
    monkeypatch.setattr("os.getuid", lambda: 4242)
    assert take_free(("a", "b"), tmp_path) == 0
    assert (tmp_path / "softtok-gpu-4242-a.lock").stat().st_mode & 0o777 == 0o600


def test_auto_is_a_free_gpu_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softtok.models.devices.take_free", lambda cards: len(cards) - 1)
    nvidia.show(monkeypatch, 1, 2, 3, 4)
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
