"""A Slurm of one node on loopback, from Debian's packages, unpacked into a folder. Nothing is installed.

The daemons end with the block that uses them. It needs apt-get and dpkg-deb, and a mirror that apt-get knows.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge")
READY_S = 30  # until the node takes jobs
CONF = """
ClusterName=softtok
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
PluginDir={plugins}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=100000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""One node that says it has eight cores. Slurm writes no accounts, so `squeue` alone knows of jobs."""


class UnavailableError(Exception):
    """Says in one line why there is no Slurm here."""


class Slurm:
    """A Slurm that runs; commands and jobs need its `environment`.

    Commands are scripts that name the configuration: Snakemake's plugin hides SLURM_CONF from the `srun` within a job.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        libraries = sorted({str(path.parent) for path in root.rglob("*.so*")}, key=len)
        self.folder, self.root = folder, root
        self.environment = {"PATH": f"{folder}/bin:/usr/bin:/bin"}
        self.daemons = {"LD_LIBRARY_PATH": ":".join(libraries), "SLURM_CONF": str(folder / "slurm.conf")}
        (folder / "bin").mkdir()
        for program in (root / "usr/bin").iterdir():
            script = folder / "bin" / program.name
            settings = " ".join(f"{name}='{value}'" for name, value in self.daemons.items())
            script.write_text(f'#!/bin/sh\n{settings} exec {program} "$@"\n')
            script.chmod(0o755)

    def run(self, *words: str) -> str:
        """Runs a command of Slurm; returns what it prints, and nothing if it fails."""
        environment = {**os.environ, **self.environment}
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(words, env=environment, text=True, capture_output=True, check=False, timeout=60)
            return done.stdout if done.returncode == 0 else ""
        return ""

    def daemon(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        """Starts a daemon in the foreground."""
        program = next(path for end in ("-wlm", "") if (path := self.root / f"usr/sbin/{name}{end}").exists())
        with open(self.folder / f"{name}.out", "wb") as out:
            environment = {**os.environ, **self.environment, **self.daemons}
            return subprocess.Popen([program, *options], env=environment, stdout=out, stderr=out, cwd=self.folder)

    def wait_for(self, state: str) -> None:
        """Waits until the node is in a state. Raises UnavailableError if it takes too long."""
        deadline = time.monotonic() + READY_S
        while self.run("sinfo", "--noheader", "--format=%T").strip() != state:
            if time.monotonic() > deadline:
                logs = [path.read_text(errors="replace") for path in self.folder.glob("slurm*.log")]
                raise UnavailableError(f"the node is not {state} after {READY_S} s: {' '.join(logs)[-500:]!r}")
            time.sleep(0.2)

    def cancel_all(self) -> None:
        """Ends all jobs, and waits for that."""
        deadline = time.monotonic() + READY_S
        while self.run("squeue", "--noheader").strip() and time.monotonic() < deadline:
            self.run("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
            self.run("scancel", f"--user={getpass.getuser()}")
            time.sleep(1)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Yields a running Slurm, all of whose files are in a folder.

    Raises UnavailableError where there is none to be had.
    """
    root = _unpacked(folder)
    found = Slurm(folder, root)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    host = socket.gethostname().split(".")[0]
    facts = {"host": host, "user": getpass.getuser(), "ports": _free_ports(2), "folder": folder}
    plugins = next(root.rglob("auth_munge.so")).parent
    (folder / "slurm.conf").write_text(CONF.format(**facts, plugins=plugins))
    stepd = next(root.glob("usr/sbin/slurmstepd*"))
    with ExitStack() as stack:

        def start(name: str, *options: str) -> None:
            stack.callback(_end, found.daemon(name, *options))

        files = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "socket", "pid-file")]
        files += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
        start("munged", "--foreground", "--force", *files)
        start("slurmctld", "-D", "-i", "-f", f"{folder}/slurm.conf")
        start("slurmd", "-D", "-f", f"{folder}/slurm.conf", "-d", str(stepd))
        found.wait_for("idle")
        stack.callback(found.cancel_all)
        yield found


def _end(daemon: subprocess.Popen[bytes]) -> None:
    """Ends a daemon that this process has started."""
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _unpacked(folder: Path) -> Path:
    """Fetches Slurm's packages, and those of libraries that this machine lacks; returns where they are unpacked."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("no apt-get and dpkg-deb here, of which Slurm's packages are had")
    packages, root = folder / "packages", folder / "root"
    packages.mkdir()
    apt = ["apt-get", "--quiet", "-o", "Debug::NoLocking=true"]
    simulated = [*apt, "install", "--simulate", "--no-install-recommends", *PACKAGES]
    try:
        listed = _output(simulated, packages)
    except UnavailableError:  # a fresh machine has no lists of packages; these go with the folder
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache").mkdir()
        apt += ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        _output([*apt, "update"], packages)
        listed = _output([*apt, *simulated[4:]], packages)
    missing = {line.split()[1] for line in listed.splitlines() if line.startswith("Inst ")}
    _output([*apt, "download", *sorted(missing | set(PACKAGES))], packages)
    for package in packages.glob("*.deb"):
        _output(["dpkg-deb", "--extract", str(package), str(root)], packages)
    return root


def _output(command: list[str], folder: Path) -> str:
    """Runs a command in a folder; returns what it prints. Raises UnavailableError with its last line if it fails."""
    try:
        done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(str(error)) from None
    if done.returncode:
        last = (done.stderr.strip() or "no word why").splitlines()[-1]
        raise UnavailableError(f"{command[0]}: {last}")
    return done.stdout


def _free_ports(count: int) -> list[int]:
    """Returns ports of loopback that nothing uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [held.getsockname()[1] for held in sockets]
