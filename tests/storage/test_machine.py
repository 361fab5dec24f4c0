"""What nvidia-smi says is read as it is, and where it says nothing, nothing is made up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from softtok.storage import machine
from softtok.storage.machine import Card, Process
from tests.support import nvidia

H100 = "0, GPU-11, NVIDIA H100 80GB HBM3, 570.124.06, 81559, 45123, 9.0, 00000000:65:00.0"
V100 = "1, GPU-22, Tesla V100-SXM2-16GB, 570.124.06, 16384, 16384, 7.0, 00000001:0A:1F.0"
MIG = "2, GPU-33, NVIDIA A100-SXM4-80GB, 570.124.06, [N/A], [N/A], 8.0, [N/A]"
RUNNING = ["GPU-11, 4242, /usr/bin/python3, 36000", "GPU-11, 77, python train.py --a=1,2, [N/A]"]


def test_cards_are_listed_with_what_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia.install(tmp_path / "bin", monkeypatch, [H100, V100, MIG], RUNNING)
    first, second, third = machine.cards()
    held = (Process(4242, "/usr/bin/python3", 36000.0), Process(77, "python train.py --a=1,2", None))
    assert first == Card(0, "NVIDIA H100 80GB HBM3", "570.124.06", 81559.0, 45123.0, 9.0, held, "0000:65:00")
    assert (second.bus, third.bus) == ("0001:0a:1f", "")
    assert second.processes == () and (first.bf16, second.bf16, third.bf16) == (True, False, True)
    assert (third.free_mb, third.total_mb) == (None, None), "of a MIG slice it does not tell"
    assert [process.told for process in held] == ["python3 (pid 4242, 35.2 GiB)", "python train.py --a=1,2 (pid 77)"]
    assert machine.driver() == "570.124.06"


def test_without_a_driver_there_are_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.cards() == [] and machine.smi("--query-gpu=name") is None
    nvidia.install(tmp_path / "bin", monkeypatch, [H100], status=9)  # as without the kernel's module
    assert machine.cards() == []
    hangs = tmp_path / "hangs/nvidia-smi"
    hangs.parent.mkdir()
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{hangs.parent}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "SMI_S", 0.2)
    assert machine.cards() == [], "one that hangs, as a card that has fallen off the bus makes it, is not waited for"


@pytest.mark.parametrize(
    ("driver", "cuda", "old"),
    [
        ("580.65.06", "13.0", False),
        ("580.64.99", "13.0", True),
        ("570.124.06", "13.0", True),
        ("570.124.06", "12.8", False),
        ("525.60.13", "12.6", False),
        ("470.82", "12.6", True),
        ("470.82", "11.8", False),
        ("580.65", "14.1", False),
    ],
)
def test_a_driver_is_old_or_not_for_a_build(driver: str, cuda: str, old: bool) -> None:
    assert machine.too_old(driver, cuda) == old


def test_memory_and_disk_are_the_machines(tmp_path: Path) -> None:
    total, available = machine.memory_bytes()
    assert 0 < available <= total
    assert total == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.05)
    free = machine.free_bytes(tmp_path / "not/yet/there")
    assert free == pytest.approx(machine.free_bytes(tmp_path), rel=0.5) and free > 0


def test_gpus_that_jobs_hold_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nvidia-smi numbers them, else by their addresses."""
    nvidia.install(tmp_path / "bin", monkeypatch, [H100, V100, MIG])
    first, second = (machine.gpu_lock(card, tmp_path) for card in ("0001:0a:1f", "0002:00:00"))
    for path in (first, second, machine.gpu_lock("0000:65:00", tmp_path)):
        path.touch()
    (tmp_path / f"softtok-gpu-{os.getuid() + 1}-0000:65:00.lock").touch()
    job = "import sys; from softtok.storage.locks import try_lock\nfiles = [open(name, 'rb+') for name in sys.argv[1:]]"
    job += "\n[try_lock(file.fileno()) for file in files]; print(flush=True); sys.stdin.read()"
    assert machine.locked_gpus(tmp_path) == []
    command = [sys.executable, "-c", job, str(first), str(second)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        held.stdout.readline()
        assert machine.locked_gpus(tmp_path) == ["1", "0002:00:00"]
        held.communicate()
    assert machine.locked_gpus(tmp_path) == []
