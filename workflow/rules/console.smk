# What Snakemake says on the terminal: a line when a job begins or ends, the counts, and of a failure its one useful line. Its own blocks name
# every input of a job and the whole spec. It holds where the profile says `quiet: [rules, ...]`; `snakemake --quiet host` shows the blocks.
import logging
import sys
import time

from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from softtok.storage.locks import SAVED
from softtok.storage.progress import last_line

LONGEST_REASON = 160  # characters
COUNTED = (LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.PROGRESS)


def name_of(record):
    """Returns a job in words: its rule, and its wildcards without hashes."""
    parts = [
        f"seed{value}" if key == "seed" else value
        for key, value in (record.wildcards or {}).items()
        if not key.endswith("spec")
    ]
    return f"{record.rule_name} {'/'.join(parts)}".strip()


class Console(logging.Handler):
    """Writes a line for each event. `failed` has the jobs whose last attempt failed, with their last words."""

    def __init__(self, settings):
        super().__init__(logging.INFO)
        self.settings = settings
        self.names, self.finished, self.failed = {}, [], {}

    def emit(self, record):
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO:
            self.begins(record)
        elif event == LogEvent.SHELLCMD and self.settings.printshellcmds:
            self.tell(f"    {getattr(record, 'cmd', None) or record.msg}")
        elif event == LogEvent.JOB_FINISHED:
            self.failed.pop(record.job_id, None)
            self.finished += filter(None, [self.names.get(record.job_id)])
        elif event == LogEvent.PROGRESS:
            done = f"done: {', '.join(self.finished)}; " if self.finished else ""
            self.tell(f"{time.strftime('%H:%M')} {done}{record.done} of {record.total}")
            self.finished.clear()
        elif event == LogEvent.JOB_ERROR:
            self.fails(record)

    def begins(self, record):
        if not record.output:
            return  # a target such as `all` does nothing
        name = self.names[record.jobid] = name_of(record)
        if not self.settings.dryrun:
            self.tell(f"{time.strftime('%H:%M')} begins: {name}")
            return
        reason = " ".join(str(record.reason).split())
        if len(reason) > LONGEST_REASON:
            reason = f"{reason[:LONGEST_REASON]}..."
        self.tell(f"{name}\n    reason: {reason}")

    def fails(self, record):
        words = [(log, last_line(Path(log))) for log in record.log]
        log, said = words[0] if words else ("no log", "")
        own = said.startswith("softtok: ")
        if own and not said.startswith("softtok: error: ") and not said.endswith(SAVED):
            said = f"killed, or out of memory? its last line: {said}"
        said = said or "ended without a word; killed, or out of memory?"
        why = " ".join(str(record.rule_msg or "").split())[:LONGEST_REASON]
        told = f"{said} ({log}){f'; {why}' if why else ''}"
        self.failed[record.jobid] = (
            f"{self.names.get(record.jobid, record.rule_name)}: {told}"
        )
        self.tell(f"{time.strftime('%H:%M')} failed: {self.failed[record.jobid]}")

    def tell(self, line):
        print(line, file=sys.stdout if self.settings.stdout else sys.stderr, flush=True)

    def tell_unexplained(self):
        """Names at the end what failed without a line of its own, which `tell_failures` would print."""
        for line in self.failed.values():
            if ": softtok: error: " not in line and SAVED not in line:
                self.tell(f"softtok: error: {line}")


def not_told_already(record):
    """Says of Snakemake's other lines which still go to the terminal."""
    text = str(record.msg)
    return (
        getattr(record, "event", None) not in COUNTED
        and not text.startswith("Select jobs to execute")
        and "CalledProcessError" not in text
    )


console = Console(workflow.output_settings)
quiet = set(workflow.output_settings.quiet or ())
if Quietness.RULES in quiet and not quiet & {Quietness.ALL, Quietness.PROGRESS}:
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler":
            handler.addFilter(not_told_already)
    logger.addHandler(console)
