"""Finds a model's tokenizer without its weights, to look at prompts before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from softtok.config.gguf_files import gguf_file, refuse_without_reader
from softtok.config.jobs import Model
from softtok.config.specs import FolderSource, GgufSource, HubSource, ToySource
from softtok.errors import UserError
from softtok.models.prompts import prompt_texts
from softtok.models.real_tokenizers import PUBLISHED, real_tokenizer
from softtok.models.references import located
from softtok.models.tokenizer_checks import encode_prompts
from softtok.problems.prompt import eos_ids
from softtok.problems.prompting import Asking
from softtok.storage.hub import in_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = 1_000_000
"""Prompts are shown at any length; the model's own limit is checked when it runs."""


class Writer:
    """Writes prompts as a model's jobs do, with its tokenizer; `ends` are the ids that end a text."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> None:
        self.name, self.tokenizer, self.ends = name, tokenizer, ends

    def __call__(self, asking: Asking, question: str) -> tuple[str, list[int]]:
        """Returns a prompt as text and as ids. Raises UserError, as `encode` does."""
        (text,) = prompt_texts(self.name, self.tokenizer, asking, [question])
        (ids,) = encode_prompts(self.name, self.tokenizer, self.ends, [text], asking.chat)
        return text, ids


def writer_of(model: Model, results: Path) -> Writer | None:
    """Returns what writes a model's prompts; None if its tokenizer is not on this machine, or not made yet."""
    source = model.spec.source
    if isinstance(source, ToySource) and source.toy.tokenizer in PUBLISHED:
        known = PUBLISHED[source.toy.tokenizer]
        tokenizer = real_tokenizer(source.toy.tokenizer, CONTEXT)
        return Writer(model.name, tokenizer, {tokenizer.get_vocab()[end] for end in known.ends})
    folder = _folder(model, results)
    if folder is None and isinstance(source, GgufSource):
        return _of_gguf(model.name, source)
    return None if folder is None else read_writer(model.name, folder)


def _folder(model: Model, results: Path) -> Path | None:
    """Returns the folder with a model's tokenizer, if it is on this machine."""
    made = results / Path(model.folder).relative_to("results")
    source = model.spec.source
    if (made / "model.json").exists():
        return located(made)[1]
    if isinstance(source, FolderSource):
        return Path(source.path)
    return in_cache(source.hub, source.revision) if isinstance(source, HubSource) else None


def _of_gguf(name: str, source: GgufSource) -> Writer:
    """Returns what writes prompts with the tokenizer in a GGUF file. Raises UserError if it cannot be converted."""
    from softtok.models.gguf_header import read_header
    from softtok.models.gguf_model import generation_of, refuse_header
    from softtok.models.gguf_tokenizer import make_tokenizer

    path = gguf_file(source.file, source.package)
    refuse_without_reader()
    header = read_header(path)
    refuse_header(header)
    tokenizer = make_tokenizer(header)
    return Writer(name, tokenizer, eos_ids(generation_of(header), tokenizer))


def read_writer(name: str, folder: Path) -> Writer:
    """Returns what writes prompts with the tokenizer in a Hugging Face folder. Raises UserError if there is none."""
    from transformers import AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        settings = folder / "generation_config.json"
        generation = GenerationConfig.from_pretrained(folder) if settings.exists() else None
    except Exception as error:  # as in `loading.load`
        why = " ".join(str(error).split())[:200]
        raise UserError(f"model {name}: its tokenizer cannot be read ({why or type(error).__name__})") from error
    return Writer(name, tokenizer, eos_ids(generation, tokenizer))
