"""Fetches models from the Hugging Face hub into its local cache, and explains failures in one line.

The hub's own messages run over several lines, and the first is only an HTTP status. `datasets` and `transformers` wrap
them in their own errors, so the whole chain of causes is searched.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from softtok.errors import UserError
from softtok.storage.files import WEIGHTS

PATTERNS = [WEIGHTS, "*.json", "tokenizer*", "*.model", "*.txt"]  # the files of a model
BUSY = {408, 429, 500, 502, 503, 504}
"""The HTTP statuses that may be others a moment later."""
WAITS_S = (3.0, 12.0)
"""How long to wait before the second and the third try, if the hub does not say it itself."""
LONGEST_WAIT_S = 300.0

T = TypeVar("T")


def fetch(name: str, revision: str | None) -> Path:
    """Downloads a hub model if the cache does not hold it; returns its folder in the cache.

    The folder's name is the commit that `revision` points to now (None: the newest commit). Raises UserError with the
    reason if the model cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(patiently(lambda: snapshot_download(name, revision=revision, allow_patterns=PATTERNS)))
    except Exception as error:  # from the network, the hub, their libraries or a full disk: there is no model
        raise UserError(
            f"model {name} (revision {revision or 'main'}) cannot be fetched: {why(error, name, revision)}"
        ) from error


def locked(name: str, commit: str) -> Path:
    """Returns the folder of a hub model at a known commit, from the cache if it is there.

    Then the hub is not asked at all. transformers would ask at every load, and fail or hang if the hub is slow, limits
    requests or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        return fetch(name, commit)


def in_cache(name: str, revision: str | None) -> Path | None:
    """Returns the folder of a hub model in the cache, or None; the hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def token_at_hand() -> bool:
    """Whether a token of the hub is stored here or in the environment; whether it is valid, only the hub knows."""
    from huggingface_hub import get_token

    return get_token() is not None


def refusal(name: str, revision: str | None) -> str | None:
    """Returns why a hub model cannot be fetched now, and what to do; None if it can, or the cache holds it.

    The hub is asked once, for access alone.
    """
    if in_cache(name, revision) is not None:
        return None
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(name)
    except Exception as error:  # as in `fetch`
        return why(error, name, revision)
    return None


def patiently(ask: Callable[[], T]) -> T:
    """Returns what `ask` returns; asks again, twice at most, if the hub is busy or the connection was lost.

    What cannot succeed (a wrong name, no access, no such revision, no room on the disk) is not tried again.
    """
    for wait in WAITS_S:
        try:
            return ask()
        except Exception as error:
            if not may_pass(error):
                raise
            wait = min(max(wait, asked_wait(error)), LONGEST_WAIT_S)
            print(f"softtok: the hub does not answer ({reason(error)}); trying again in {wait:.0f} s", file=sys.stderr)
        time.sleep(wait)
    return ask()


def may_pass(error: BaseException) -> bool:
    """Whether an error may be gone a moment later: a busy hub or a lost connection, and not a user's mistake."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    for cause in chain(error):  # the outermost that says it; those below may have been dealt with
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if (status := _status(cause)) is not None:
            return status in BUSY
        if lost(cause) or isinstance(cause, (ConnectionError, TimeoutError)):
            return True
    return False


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status that an error tells, if any."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def asked_wait(error: BaseException) -> float:
    """Returns the seconds that a busy hub asks to wait, or 0."""
    for cause in chain(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        text = str(headers.get("retry-after", ""))
        if text.isdigit():
            return float(text)
    return 0.0


def why(error: BaseException, page: str, revision: str | None) -> str:
    """Says why something could not be fetched, and what to do.

    `page` is the path on the hub, such as "org/model" or "datasets/org/name".
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(chain(error))
    if any(_status(cause) in BUSY for cause in causes):
        return f"the hub is busy ({reason(error)}), also when asked three times; run snakemake again later"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"access is restricted; ask for it at https://huggingface.co/{page}, then log in with `hf auth login`"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"it has no revision {revision or 'main'!r}"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "the hub has nothing of this name, or it is private; check the name, or log in with `hf auth login`"
    if any(isinstance(cause, (LocalEntryNotFoundError, ConnectionError)) or lost(cause) for cause in causes):
        return "the hub cannot be reached and the local cache does not hold it; check the network"
    return f"{reason(error)}; check name, revision, access and network"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its causes, the outermost first."""
    inner: BaseException | None = error
    while inner is not None:
        yield inner
        inner = inner.__cause__ or inner.__context__


def lost(error: BaseException) -> bool:
    """Whether an error means a lost connection, for any HTTP client that the hub's libraries have used."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def reason(error: BaseException) -> str:
    """The type and the first line of an error, or of its cause if it has one."""
    inner = error.__cause__ or error
    return f"{type(inner).__name__}: {(str(inner).strip().splitlines() or [''])[0]}"
