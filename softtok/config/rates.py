"""How fast a device does what takes time: as measured by `softtok doctor`, or from a small table."""

from __future__ import annotations

from pathlib import Path

from softtok.storage.records import Record

DOCTOR = Path("logs", "doctor.json")
"""Where `softtok doctor` keeps the rates that it measured, below the folder of results."""


class Rates(Record):
    """What a device gets done a second, as work goes and not at its peak.

    `large` and `decode` are operations of products in passes over many tokens and in decode steps, `memory` bytes read
    while decoding. `layer_s` is what a layer of a decode step takes however little it computes. `written` is bytes a
    second to the disk. On a CPU `large` and `decode` are those of one thread. Real times are within a factor of
    `spread` of counted ones, either way.
    """

    device: str
    gpu: bool
    large: float
    decode: float
    memory: float
    layer_s: float
    written: float
    start_s: float
    spread: float = 1.5
    measured: bool = False

    def of_threads(self, threads: int) -> Rates:
        """Returns the rates of a job with so many CPU threads; on a GPU they do not matter."""
        if self.gpu or threads == 1:
            return self
        faster = 1 + SCALING * (threads - 1)
        return self.model_copy(update={"large": self.large * faster, "decode": self.decode * faster})

    @property
    def bytes_a_weight(self) -> int:
        """Bytes of a weight of the working copy under `precision: auto`."""
        return 2 if self.gpu else 4


SCALING = 0.8
"""What a further CPU thread adds, in threads."""
HOST_MEMORY = 4e10
"""Bytes a second at which an optimizer in the memory of a GPU's host goes through its state."""


def _gpu(device: str, peak: float, memory: float) -> Rates:
    """Returns the rates of a GPU: a share of the maker's dense bf16 peak (operations) and of its bandwidth (bytes)."""
    return Rates(
        device=device,
        gpu=True,
        large=SHARE_OF_PEAK * peak,
        decode=SHARE_OF_PEAK * peak,
        memory=SHARE_OF_BANDWIDTH * memory,
        layer_s=LAUNCHES_S,
        written=1e9,
        start_s=30.0,
        spread=GPU_SPREAD,
    )


GPU_SPREAD = 3.0  # a guess: no job was timed on a GPU yet
SHARE_OF_PEAK, SHARE_OF_BANDWIDTH = 0.35, 0.6
LAUNCHES_S = 5e-4  # some 60 operations a layer, each 8 microseconds of Python and launch
DEVICES = {
    "H100": _gpu("H100", 989e12, 3.35e12),
    "H200": _gpu("H200", 989e12, 4.8e12),
    "A100": _gpu("A100", 312e12, 2.0e12),
    "4090": _gpu("4090", 165e12, 1.01e12),
    "cpu": Rates(
        device="cpu",
        gpu=False,
        large=1.1e11,  # measured on a core with AVX-512
        decode=4.5e10,
        memory=1e10,
        layer_s=2e-4,
        written=3e8,
        start_s=4.0,
    ),
}
