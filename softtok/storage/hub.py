"""Models of the Hugging Face hub in its local cache; and why something could not be fetched, in the words of one line.

The hub's own messages run over several lines, of which the first is an HTTP status. `datasets` and `transformers` wrap
them in errors of their own, so the chain of causes is searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from softtok.errors import UserError
from softtok.storage.files import WEIGHTS

PATTERNS = [WEIGHTS, "*.json", "tokenizer*", "*.model", "*.txt"]  # the files of a model


def fetch(name: str, revision: str | None) -> Path:
    """The folder in the cache of a hub model at the commit that `revision` now is (none: of the newest), downloaded if
    need be. Raises UserError with the reason where that fails."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except Exception as error:  # the network, the hub, their libraries and a full disk; to the user all mean: no model
        raise UserError(
            f"model {name} (revision {revision or 'main'}) cannot be fetched: {why(error, name, revision)}"
        ) from error


def locked(name: str, commit: str) -> Path:
    """The same at a known commit. Where the cache holds it, the hub is asked nothing: transformers, given a name, would
    ask at every load, and fail or hang where the hub is slow, strict or out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        return fetch(name, commit)


def why(error: BaseException, page: str, revision: str | None) -> str:
    """The reason, and what to do. `page` is what stands behind the hub's address: "org/model", "datasets/org/name"."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(chain(error))
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
    """An error and what it was raised for, from the outside in."""
    inner: BaseException | None = error
    while inner is not None:
        yield inner
        inner = inner.__cause__ or inner.__context__


def lost(error: BaseException) -> bool:
    """Whether it is an HTTP client's word on a lost connection; the hub's libraries changed their client over time."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def reason(error: BaseException) -> str:
    """An error's first line, with the error's kind; of a reader's wrapper, the error within."""
    inner = error.__cause__ or error
    return f"{type(inner).__name__}: {(str(inner).strip().splitlines() or [''])[0]}"
