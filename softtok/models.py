"""Language models as the method needs them: embeddings in, final hidden states and fp32 logits out.

Any Hugging Face folder loads through the Auto classes; `probe` then checks on a few tokens what the method assumes of a
family and refuses the others with one line, so that nothing below needs to know one architecture from another.

Shapes: N rows, T positions, S cached + new positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import logging as hf_logging

from softtok import attention
from softtok.base_model import refuse_changed
from softtok.decoding import Decoder
from softtok.devices import choose_device
from softtok.errors import UserError
from softtok.hub import locked
from softtok.matmul import adopt, linear
from softtok.prompt import PREFILL_AFTER_CUT, decode
from softtok.settings import RuntimeSettings
from softtok.state import read_manifest

hf_logging.disable_progress_bar()


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model seen as embedding matrix, body and output head."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    cuda_graphs: bool = False  # decode steps are recorded and replayed

    def __post_init__(self) -> None:
        self.model.set_attn_implementation(attention.NAME)
        adopt(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def embedding_VD(self) -> torch.Tensor:
        """E, the token embedding matrix (a parameter)."""
        return self.model.get_input_embeddings().weight  # type: ignore[return-value]

    @property
    def head_VD(self) -> torch.Tensor:
        """The output head (a parameter; E itself where a model ties the two)."""
        return self.model.get_output_embeddings().weight  # type: ignore[union-attr]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of E, shape ids.shape + (D,)."""
        return F.embedding(ids, self.embedding_VD)

    def hidden(
        self, embeds_NTD: torch.Tensor, mask_N1TS: torch.Tensor | None, positions_NT: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor:
        """Final hidden states (after the last norm) of shape (N, T, D); keys and values go to `cache`.

        The mask is boolean, true where a query may look, over cached and new positions (None: a cache of `RowLayer`s
        knows); positions are explicit, because the defaults are silently wrong with left padding.
        """
        output = self.model.base_model(
            inputs_embeds=embeds_NTD,
            # A mask of four dimensions is taken as it is; any will do where the cache knows what a row may look at.
            attention_mask=positions_NT.new_ones(1, 1, 1, 1).bool() if mask_N1TS is None else mask_N1TS,
            position_ids=positions_NT,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state


def in_fp32(lm: LanguageModel, mixtures: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Head and E in fp32, without a graph; one matrix where the model ties them. Copies, where the working precision is
    another: to be made once for many tokens. Without `mixtures` E, of which rows are looked up then, stays as it is."""
    head_VD, embedding_VD = lm.head_VD.detach().float(), lm.embedding_VD.detach()
    if mixtures:
        embedding_VD = head_VD if lm.embedding_VD is lm.head_VD else embedding_VD.float()
    return head_VD, embedding_VD


def refuse_longer(lm: LanguageModel, positions: int, what: str) -> None:
    """Raises UserError where `what` needs more positions than the model was made for: learned ones end there, in the
    middle of a job, and rotary ones have never been trained."""
    room = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and positions > room:
        raise UserError(
            f"model {lm.name}: holds {room} positions, and the longest text of {what} needs {positions};"
            " lower max_cot_tokens or leave out what is long"
        )


def logits_fp32(hidden: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """Next-token logits in fp32 whatever the working precision: bf16 logits tie exactly in 3-5 % of steps
    (random Llamas of width 128 and 512)."""
    return linear(hidden.float(), head_VD.float())


def left_pad(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids (B, P), boolean mask (B, P) and positions (B, P) of prompts padded on the left with id 0 (masked, so any id
    will do)."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def causal_mask(mask_BP: torch.Tensor) -> torch.Tensor:
    """(B, 1, P, P) mask of a left-padded prompt. A padded query looks at itself, lest its softmax be over nothing
    (NaN)."""
    width = mask_BP.shape[1]
    lower = torch.ones(width, width, dtype=torch.bool, device=mask_BP.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=mask_BP.device)
    return ((lower & mask_BP[:, None, :]) | itself)[:, None]


def prefill(
    lm: LanguageModel, prompts: list[list[int]]
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor, torch.Tensor]:
    """Runs B prompts once: last hidden state (B, D), their keys and values, mask (B, P), lengths (B,). Keeps the graph
    if grad is on."""
    ids, mask, positions = left_pad(prompts, lm.device)
    cache = DynamicCache()
    hidden = lm.hidden(lm.embed(ids), causal_mask(mask), positions, cache)
    return hidden[:, -1], cache, mask, mask.sum(1)


def resolve(folder: Path) -> tuple[str, str | None]:
    """Where a model's or a run's weights really are (path or hub id, revision): follows the small reference files that
    stand for a hub model, a user's folder, or the untouched base of a `base` run. Raises UserError where such a folder
    holds other weights than it did."""
    for name in ("checkpoint.json", "model.json"):
        if (folder / name).is_file():
            manifest = read_manifest(folder / name)
            reference = manifest.get("reference")
            if reference is None:
                break
            if "hub" in reference:
                return reference["hub"], reference.get("revision")
            refuse_changed(manifest)
            return resolve(Path(reference["path"]))
    return str(folder), None


def load(folder: Path, runtime: RuntimeSettings) -> LanguageModel:
    """Loads tokenizer and weights in the working precision, in evaluation mode (no dropout), and probes the family.

    Raises UserError when the folder holds no causal language model or the family is not supported.
    """
    device = choose_device(runtime)
    if runtime.cuda_graphs and device.type != "cuda":
        raise UserError(f"runtime.cuda_graphs: asked for, but the device is {device}; set it to false or use a GPU")
    precision = runtime.precision if runtime.precision != "auto" else ("fp32" if device.type == "cpu" else "bf16")
    if device.type == "cuda":
        _prepare_gpu()
    name, commit = resolve(folder)
    files = name if commit is None else locked(name, commit)
    try:
        tokenizer = AutoTokenizer.from_pretrained(files)
        model = AutoModelForCausalLM.from_pretrained(
            files,
            dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
            attn_implementation="sdpa",
            device_map={"": device},
        )
    except Exception as error:  # of many libraries' own types; whatever it is, the folder is what to look at
        why = " ".join(str(error).split())[:200]
        raise UserError(f"model {name}: cannot be loaded by transformers ({why or type(error).__name__})") from error
    # For some families transformers makes up an empty tokenizer where the folder holds none.
    words = decode(tokenizer, tokenizer.encode(PREFILL_AFTER_CUT, add_special_tokens=False))
    if words.strip() != PREFILL_AFTER_CUT.strip():
        raise UserError(f"model {name}: its tokenizer writes {words!r} for {PREFILL_AFTER_CUT!r}; are its files there?")
    lm = LanguageModel(model.eval(), tokenizer, name, runtime.cuda_graphs)
    probe(lm)
    return lm


def _prepare_gpu() -> None:
    """Turns off defaults of PyTorch that do not suit this work."""
    # cuDNN's attention, the first choice on newer GPUs, plans anew for every shape and keeps all plans; of the shapes
    # of CoTs hardly two are the same.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Rollout and training multiply other numbers of rows: sums rounded to bf16 part by part would differ more.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


@torch.no_grad()
def probe(lm: LanguageModel) -> None:
    """Checks on a few tokens what the method assumes; raises UserError naming what does not hold.

    1. The embedding layer gives rows of E (some families scale them), so that p E is in the space the body reads.
    2. Logits are head @ hidden (some families scale or cap them).
    3. Cached, uncached and left-padded passes agree, so that rollout and training see the same states.
    """
    try:
        _probe(lm)
    except UserError:
        raise
    except Exception as error:  # families without keys and values to share fail in ways of their own
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {lm.name}: cannot be run on embeddings, masks and a cache of keys and values"
            f" ({type(error).__name__}: {why}); this family is not supported"
        ) from error


def _probe(lm: LanguageModel) -> None:
    # Mistakes are of the order of the logits' spread, rounding is a few percent of it in bf16. Root mean squares, for
    # the largest of a million differences says more about their number.
    tolerance = 1e-3 if lm.dtype == torch.float32 else 0.1
    vocabulary = lm.embedding_VD.shape[0]
    ids = torch.arange(8, device=lm.device) * 7 % vocabulary
    if lm.model.get_output_embeddings() is None or lm.model.base_model is lm.model:
        raise UserError(f"model {lm.name}: has no separate body and output head; softtok needs a causal language model")
    if not torch.equal(lm.model.get_input_embeddings()(ids), lm.embed(ids)):  # type: ignore[misc]
        raise UserError(
            f"model {lm.name}: its embedding layer does more than look up rows of E; this family is not supported"
        )
    if getattr(lm.model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(f"model {lm.name}: its output head has a bias; this family is not supported")

    window = getattr(lm.model.config.get_text_config(), "sliding_window", None)
    if window is not None:
        raise UserError(
            f"model {lm.name}: attends to a sliding window of {window} tokens; this family is not supported"
        )

    def check(got: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
        gap = ((got - wanted).square().mean().sqrt() / wanted.std().clamp(min=1e-6)).item()
        if not gap < tolerance:
            raise UserError(f"model {lm.name}: {what} (relative difference {gap:.1e}); this family is not supported")

    def run(prompts: list[list[int]]) -> torch.Tensor:
        prompt_ids, mask, positions = left_pad(prompts, lm.device)
        return lm.hidden(lm.embed(prompt_ids), causal_mask(mask), positions, None)

    whole = run([ids.tolist()])
    logits = logits_fp32(whole[0], lm.head_VD)
    check(logits, lm.model(input_ids=ids[None]).logits[0].float(), "logits are not head @ hidden")
    check(
        logits_fp32(run([ids.tolist(), ids[:5].tolist()])[1, -5:], lm.head_VD),
        logits[:5],
        "left padding changes the logits",
    )
    first, prompt_cache, mask, _ = prefill(lm, [ids[:5].tolist()])
    decoder = Decoder(lm, prompt_cache, mask, samples=1, length=3)
    states = [first]
    for place in range(5, 8):
        states.append(decoder.step(lm.embed(ids[place : place + 1]), torch.tensor([place], device=lm.device)))
    check(logits_fp32(torch.cat(states), lm.head_VD), logits[4:], "cached and uncached logits differ")
