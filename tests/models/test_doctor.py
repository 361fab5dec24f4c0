"""The doctor's screen names what would stop a study, and its probes measure what they say; there is no GPU here."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError

from softtok.config.flops import Size
from softtok.config.rates import DOCTOR, Rates
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import parse
from softtok.errors import UserError
from softtok.models import doctor, probes
from softtok.models.devices import auto_precision, choose_device
from softtok.models.doctor import examine
from softtok.models.gpu_build import why_none
from softtok.report.forecast import Forecast
from softtok.storage import hub, machine
from tests.support import nvidia
from tests.support.project import Project, shipped

H100 = "0, GPU-11, NVIDIA H100 80GB HBM3, {driver}, 81559, {free}, 9.0, 00000000:65:00.0"
V100 = "0, GPU-11, Tesla V100-SXM2-16GB, {driver}, 16384, 16000, 7.0, 00000000:65:00.0"
NEW, OLD = "580.95.05", "550.54.15"
TINY = Size(64, 3, 4, 2, 96, 256)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    made = Project(tmp_path / "project")
    made.config = shipped()
    return made


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CUDA 13, which sees no GPU."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "token_at_hand", lambda: False)
    monkeypatch.setattr(hub, "refusal", lambda name, revision: None)


def screen(project: Project, study: str, width: int = 80) -> list[str]:
    grid = project.grid()
    return list(examine(grid, grid.studies[study], project.results, False, width))


def finding(lines: list[str], label: str) -> str:
    """Returns a finding with its mark, on one line."""
    start = next(place for place, line in enumerate(lines) if line[2:].startswith(label))
    rest = lines[start + 1 :]
    count = next((n for n, line in enumerate(rest) if not line.startswith(" " * 12)), len(rest))
    return " ".join(" ".join([lines[start], *rest[:count]]).split())


def test_why_pytorch_sees_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia.install(tmp_path / "bin", monkeypatch, [H100.format(driver=OLD, free=1)])
    version = torch.__version__
    told = why_none()
    assert told.startswith(
        f"PyTorch {version}, built for CPUs alone; driver {OLD} here; install a build for CUDA: `make"
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    told = why_none()
    assert f"CUDA 13.0; driver {OLD} here, and it needs 580.65 or newer; update the driver, or" in told
    assert "TORCH_INDEX=" in told
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    assert "nvidia-smi" in why_none() and "needs" not in why_none(), "that driver will do"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' hides the cards" in why_none()
    monkeypatch.setattr(machine, "driver", lambda: None)
    assert "no NVIDIA driver here, and it needs 525.60 or newer" in why_none()
    for asked in ({"gpus": 1}, {"device": "cuda:0"}):
        with pytest.raises(
            UserError, match=r"PyTorch sees none here: PyTorch .* CUDA 12\.6; no NVIDIA driver"
        ) as error:
            choose_device(RuntimeSettings.model_validate(asked))
        assert "device: cpu" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.usefixtures("gpu_build")
def test_what_would_stop_a_study_is_marked(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = ["GPU-11, 4242, /opt/python3, 36000"]
    nvidia.install(tmp_path / "bin", monkeypatch, [H100.format(driver=OLD, free=45000)], running)
    monkeypatch.setattr(machine, "memory_bytes", lambda: (100 * 2**30, 90 * 2**30))
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 700 * 10**9)
    monkeypatch.setattr(machine, "locked_gpus", lambda: ["3"])
    lines = screen(project, "paper")
    assert lines[0] == "paper: asks for a GPU" and max(map(len, lines)) <= 80
    assert finding(lines, "PyTorch").endswith(f"CUDA 13.0 (driver 580.65 or newer); driver here: {OLD}")
    assert finding(lines, "GPU").startswith("! GPU PyTorch sees none") and "580.65" in finding(lines, "GPU")
    assert finding(lines, "card 0") == (
        "card 0 NVIDIA H100 80GB HBM3: 43.9 GiB free of 79.6; bf16; held by python3 (pid 4242, 35.2 GiB)"
    )
    assert finding(lines, "room").startswith("! room a training keeps 54 GiB"), "of which 43.9 are free"
    assert finding(lines, "locks") == "locks softtok jobs hold GPU 3"
    assert finding(lines, "memory").startswith("! memory 90.0 of 100.0 GiB available; a job asks for 175.8, and llama")
    assert finding(lines, "disk").startswith("disk 700.0 GB free; models and checkpoints take 402.")
    assert lines[-1] == "3 of these would stop the study (!)"


@pytest.mark.usefixtures("gpu_build")
def test_a_machine_that_will_do_has_no_mark(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia.install(tmp_path / "bin", monkeypatch, [H100.format(driver=NEW, free=81000)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "memory_bytes", lambda: (256 * 2**30, 250 * 2**30))
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 700 * 10**9)
    lines = screen(project, "paper")
    assert not [line for line in lines if line.startswith("!")] and lines[-1] == "nothing here would stop the study"
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 500 * 10**9)
    assert finding(screen(project, "paper"), "disk").startswith("! disk"), "a training's state needs room, too"
    nvidia.install(tmp_path / "bin", monkeypatch, [V100.format(driver=NEW)])
    told = finding(screen(project, "paper"), "card 0")
    assert told.startswith("! card 0 Tesla V100") and "no bf16: precision auto is fp32" in told


def test_cards_without_bf16_compute_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, precision in (((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=capability: it)
        assert auto_precision(torch.device("cuda", 0)) == precision
    assert auto_precision(torch.device("cpu")) == "fp32"


def test_access_to_gated_models_is_asked_beforehand(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked: list[str] = []
    response: Any = SimpleNamespace(status_code=403, headers={}, request=None, url="https://hub/x")

    def check(self: object, name: str) -> None:
        asked.append(name)
        if name.startswith("meta-llama/"):
            raise GatedRepoError("403\nmore", response=response)

    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", check)
    monkeypatch.setattr(hub, "in_cache", lambda name, revision: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    lines = screen(project, "paper", 120)
    assert "no token" in finding(lines, "hub") and len(asked) == 3
    (gated,) = [line for line in lines if "llama-3.1-8b: access is restricted" in line]
    assert gated.startswith("!") and any("qwen-2.5-3b: can be fetched" in line for line in lines)


def test_probes_are_kept_for_the_estimate(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "STEPS", 2)
    monkeypatch.setattr(probes, "WRITTEN", 2**25)
    grid = project.grid()
    threads = torch.get_num_threads()
    try:
        lines = list(examine(grid, grid.studies["demo"], project.results, True, 80))
    finally:
        torch.set_num_threads(threads)
    rates = parse(Rates, str(project.results / DOCTOR), "doctor")
    assert rates.measured and not rates.gpu and rates.large > 1e8 and rates.decode > 1e7
    assert len([line for line in lines if line.startswith("  probe ")]) == 5 and max(map(len, lines)) <= 80
    assert Forecast(grid, grid.studies["demo"], project.results).rates == rates
    assert sorted(path.name for path in project.results.rglob("*")) == ["doctor.json", "logs"], "what it wrote is gone"


def test_a_probe_takes_the_time_that_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits() -> None:
        time.sleep(0.05)

    def computes() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    cpu = torch.device("cpu")
    assert probes.least_s(waits, cpu) < 0.02, "other programs do not count"
    assert 0.05 <= probes.least_s(computes, cpu) < 0.1


def test_the_decode_probe_feeds_all_rows_in_the_given_shape() -> None:
    lm = probes.random_model(TINY, torch.device("cpu"), torch.float32)
    assert lm.model.config.num_hidden_layers == 3 and lm.embedding_VD.shape == (256, 64)
    calls = []
    watched = lm.model.base_model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert probes.decode_s(lm, 5) > 0
    watched.remove()
    assert len(calls) % probes.STEPS == 1, "a prompt, and then steps"


def test_nothing_is_written_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "free_bytes", lambda folder: probes.WRITTEN + probes.SPARE - 1)
    assert probes.write_rate(tmp_path) is None and list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(probes, "WRITTEN", 2**24)
    monkeypatch.setattr(probes, "SPARE", 0)
    rate = probes.write_rate(tmp_path)
    assert rate is not None and rate > 0 and list(tmp_path.iterdir()) == []


def test_a_model_of_unknown_shape_is_said(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "someone/else"
    project.edit(lambda config: config["models"].update(other={"like": "qwen-2.5-3b", "hub": "some/one"}))
    project.edit(lambda config: config["studies"]["gpu-smoke"].update(models=["other"]))
    assert "how large other is will be known" in finding(screen(project, "gpu-smoke"), "models")
    grid = project.grid()
    (needed,) = doctor.needed(grid, grid.studies["gpu-smoke"], folder)
    assert needed.size is None and needed.count == 0
