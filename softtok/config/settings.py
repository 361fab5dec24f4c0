"""Settings of token modes, training, evaluation, the machine and the toy model.

They are part of specs and of the sections of config.yaml (`schema.py`). All settings of a run have defaults, so an
override is an instance of the same class with only some fields set (`given`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from softtok.config.messages import nearest
from softtok.config.values import LEAST_TEMPERATURE, Number, Real, Samples, Seed, Size, Threads, Whole
from softtok.plugins import Reference, is_plugin
from softtok.storage.records import Record

DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
BUILT_IN_TOKENS = ("hard", "soft")
BUILT_IN_OBJECTIVES = ("rloo", "grpo", "ppo-clip")
# A built-in name or a user's code: as it was written (`FILE.py:NAME`), or as specs refer to it.
Tokens = Annotated[str | Reference, WithJsonSchema({"type": "string", "pattern": f"^({'|'.join(BUILT_IN_TOKENS)})$|:"})]
ObjectiveName = Annotated[
    str | Reference, WithJsonSchema({"type": "string", "pattern": f"^({'|'.join(BUILT_IN_OBJECTIVES)})$|:"})
]


def known(choice: str | Reference, names: tuple[str, ...]) -> str | Reference:
    """Returns a choice that is a built-in name or a user's code. Raises ValueError for any other."""
    if isinstance(choice, str) and choice not in names and not is_plugin(choice):
        raise ValueError(f"{choice!r} is not possible{nearest(choice, names)} (code of your own: FILE.py:NAME)")
    return choice


class Settings(Record):
    """Base of every configuration class."""

    @model_validator(mode="after")
    def _texts_hold_something(self) -> Self:
        for name in sorted(self.model_fields_set):
            text = getattr(self, name)
            if isinstance(text, str) and (not text or "\0" in text):
                what = "holds a character NUL; remove it" if text else "is empty; give a text, or leave the key out"
                raise ValueError(f"{name}: {what}")
        return self

    def given(self) -> dict[str, Any]:
        """Returns the settings that were written down, without defaults."""
        dumped = self.model_dump(exclude_unset=True)
        # A dump leaves out some values that say what their absence says (`exclude_if`). A report keeps the order.
        names = [name for name in type(self).model_fields if name in self.model_fields_set]
        return {name: dumped.get(name, getattr(self, name)) for name in names}


class TokenMode(Settings):
    """How one CoT token is made.

    `hard` feeds the embedding of a sampled token, `soft` a mixture of embeddings with noise at one of three places.
    Fuzzy is soft at temperature 1e-4. The equations are in `method/token_modes.py`.
    """

    tokens: Tokens = Field(description="hard, soft, or a class of your own: FILE.py:NAME")
    temperature: Real = Field(
        default=1.0, ge=0, description="tau of the next-token distribution; 0 (hard only) is argmax"
    )
    noise_scale: Real = Field(
        default=0.0,
        ge=0,
        description="gamma: noise_std = gamma * an RMS of the base model, see noise_at (soft only)",
    )
    noise: Literal["gaussian", "gumbel"] = Field(
        default="gaussian", description="gumbel: on the log-probabilities, without a scale; x = softmax(y / tau) E"
    )
    noise_at: Literal["embedding", "hidden", "logits"] = Field(
        default="embedding",
        description="what Gaussian noise is added to: the mixture, in units of the RMS of E; the final hidden state"
        " before the head, or the logits, in units of theirs where the CoT begins",
    )
    top_k: Whole | None = Field(
        default=None,
        ge=2,
        description="soft only: the k largest logits count (chosen before noise on them, behind noise on the state)",
    )
    inputs_beta: Real | None = Field(
        default=None, ge=0, description="Mixture of Inputs: sampled hard tokens, fed mixed with p E (inference only)"
    )
    end_entropy: Real | None = Field(
        default=None,
        gt=0,
        description="Soft Thinking: nats; the CoT also ends after end_entropy_steps in a row below it (inference only)",
    )
    end_entropy_steps: Whole = Field(default=256, ge=1, description="steps in a row, see end_entropy")

    @field_validator("tokens")
    @classmethod
    def _known_tokens(cls, tokens: str | Reference) -> str | Reference:
        return known(tokens, BUILT_IN_TOKENS)

    @model_validator(mode="before")
    @classmethod
    def _gumbel_has_one_place(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("noise") == "gumbel":
            return {"noise_at": "logits"} | given
        return given

    @model_validator(mode="after")
    def _soft_divides(self) -> TokenMode:
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise ValueError(f"temperature: {self.temperature} is too small to divide by; 0 is argmax, for hard tokens")
        if self.tokens == "soft" and self.temperature == 0:
            raise ValueError(
                "temperature: 0 is for hard tokens; a soft mode divides by its temperature (fuzzy uses 1.0e-4)"
            )
        return self

    @model_validator(mode="after")
    def _hard_has_no_noise(self) -> TokenMode:
        for name in ("noise_scale", "noise", "noise_at", "top_k") if self.hard else ():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{name}: {value} has no effect on hard tokens; remove it, or set tokens: soft")
        return self

    @model_validator(mode="after")
    def _mixture_of_inputs_samples(self) -> TokenMode:
        if self.inputs_beta is not None and self.hard and self.temperature == 0:
            raise ValueError("inputs_beta: mixes sampled tokens with p E; at temperature 0 nothing is sampled")
        if self.inputs_beta is not None and self.tokens == "soft":
            raise ValueError("inputs_beta: mixes sampled tokens with p E; set tokens: hard, which samples them")
        return self

    @model_validator(mode="after")
    def _noise_has_its_place(self) -> TokenMode:
        if self.noise == "gumbel" and self.noise_scale > 0:
            raise ValueError(f"noise_scale: {self.noise_scale} has no effect on Gumbel noise; remove it")
        if self.noise == "gumbel" and self.noise_at != "logits":
            raise ValueError(
                f"noise_at: Gumbel noise is added to log-probabilities, not to the {self.noise_at}; remove it"
            )
        if self.noise == "gaussian" and self.noise_at != "embedding" and self.noise_scale == 0:
            raise ValueError(f"noise_at: {self.noise_at} has no effect without noise; remove it, or set noise_scale")
        return self

    @model_validator(mode="after")
    def _end_entropy_is_set(self) -> TokenMode:
        if self.end_entropy is None and self.end_entropy_steps != type(self).model_fields["end_entropy_steps"].default:
            raise ValueError("end_entropy_steps: has no effect without end_entropy, the entropy to stay below")
        return self

    @property
    def hard(self) -> bool:
        """Whether it feeds the built-in hard tokens."""
        return self.tokens == "hard"

    @property
    def own(self) -> bool:
        """Whether a user's class makes its tokens."""
        return self.tokens not in ("hard", "soft")

    @property
    def kind(self) -> str:
        """Which built-in class makes its tokens (`method/token_modes.py`)."""
        if self.hard:
            return "hard" if self.inputs_beta is None else "mixture-of-inputs"
        return "gumbel" if self.noise == "gumbel" else self.noise_at

    @property
    def deterministic(self) -> bool:
        """Whether two samples of one prompt are always the same."""
        if self.own:
            return False  # its class decides
        return self.temperature == 0 if self.hard else self.noise == "gaussian" and self.noise_scale == 0

    @property
    def feeds_tokens(self) -> bool:
        """Whether each step feeds one row of E, as a language model without soft tokens does."""
        return self.kind == "hard" and not self.own

    @property
    def noise_place(self) -> str | None:
        """What Gaussian noise is added to, whose RMS is its unit; None without such noise."""
        return self.noise_at if self.noise_scale > 0 else None

    # What training may do with the mode. A user's class is asked for it by `softtok check`.

    @property
    def sound_ratios(self) -> bool:
        """Whether ratios of the probabilities of its CoT tokens can be trusted."""
        return self.hard or self.own

    def not_trained(self) -> Iterator[tuple[str, str]]:
        """Yields the settings that keep its CoT tokens from being trained, and why."""
        if self.deterministic:
            key, why = ("temperature", "argmax") if self.hard else ("noise_scale", "no noise")
            yield key, f"0 means {why}, so CoT tokens have no log-probability to learn from"

    def inference_only(self) -> list[str]:
        """Returns the settings that it has and training cannot use."""
        return [key for key in ("inputs_beta", "end_entropy") if getattr(self, key) is not None]

    def no_path(self) -> Iterator[tuple[str, str]]:
        """Yields the settings for which the answer has no gradient through the CoT, and why."""
        if self.hard:
            yield "tokens", "sampled tokens are jumps, through which there is no gradient"
        elif self.deterministic:
            yield "noise_scale", "0 leaves nothing to reparametrise"

    def without_effect(self, settings: TrainingSettings) -> Iterator[tuple[str, str]]:
        """Yields the training settings that change nothing in this mode, and on what they have no effect."""
        if self.hard:
            keys = ("stop_on", "embedding_gradient") if settings.stop_on != "never" else ("embedding_gradient",)
            yield from ((key, "hard tokens") for key in keys)
        elif self.noise_at != "embedding" and settings.estimator == "score":
            yield "embedding_gradient", f"a mixture after noise on the {self.noise_at}, which is a constant"

    def no_kl(self) -> str | None:
        """Returns why its tokens have no finite KL to the base model's; None if they have."""
        if self.hard and self.temperature == 0:
            return "the KL of argmax tokens to the base is infinite; raise the mode's temperature"
        if not self.hard and not self.own and self.noise_place != "embedding":
            return "is defined for hard tokens and for soft ones with Gaussian noise on the embedding, not here"
        return None


class SampledMode(TokenMode):
    """A token mode of inference, and how often it is drawn from."""

    samples: Samples = Field(default=1, ge=1, description="per problem; pass@k is known for k up to this")


def _is_two(value: int) -> bool:
    return value == 2


class TrainingSettings(Settings):
    """Settings of one training run; the defaults are the paper's where it states them (docs/choices.md)."""

    steps: Whole = Field(default=4000, ge=1)
    prompts_per_step: Samples = Field(default=2, ge=1, description="B")
    samples_per_prompt: Samples = Field(default=32, ge=2, description="G; at least 2, for the leave-one-out baseline")
    learning_rate: Real = Field(default=6e-6, gt=0)
    warmup_steps: Whole = Field(default=20, ge=0)
    weight_decay: Real = Field(default=0.0, ge=0)
    gradient_clip: Real = Field(default=1.0, gt=0)
    max_cot_tokens: Whole = Field(default=128, ge=1)
    max_answer_tokens: Whole = Field(default=32, ge=1)
    answer_temperature: Real = Field(default=1.0, ge=LEAST_TEMPERATURE)
    stop_on: Literal["shadow", "nearest", "never"] = Field(
        default="shadow",
        description="whose text ends a soft CoT: argmax or nearest embedding; never: every CoT has max_cot_tokens",
    )
    cot_term: bool = Field(default=True, description="false: only answer tokens carry a policy-gradient term")
    estimator: Literal["score", "pathwise"] = Field(
        default="score",
        description="of the CoT's part of the gradient: the score of each step's density (the paper's), or the answer's"
        " gradient through the soft thoughts",
        exclude_if=lambda estimator: estimator == "score",  # specs of runs made before it existed stay the same
    )
    adjoint_iterations: Whole = Field(
        default=2, ge=0, description="K of pathwise; exact from one less than the CoT's length on", exclude_if=_is_two
    )
    embedding_gradient: bool = Field(default=True, description="does E inside h = p E receive gradient")
    objective: ObjectiveName = Field(
        default="rloo",
        description="rloo; grpo or ppo-clip, which clip ratios of log-probabilities (not for soft CoT terms); or a"
        " class of your own: FILE.py:NAME",
    )
    updates_per_step: Whole = Field(default=1, ge=1, description="optimizer steps on one rollout (grpo, ppo-clip)")
    clip_range: Number = Field(default=0.2, gt=0, lt=1, description="of ratios, where there are several updates")
    entropy_bonus: Real = Field(default=0.0, ge=0, description="times the entropy (nats) at every CoT token")
    kl_coefficient: Real = Field(default=0.0, ge=0, description="times the KL to the base at every sampled token")
    reward_correct: Real = Field(default=100.0, ge=-1e6)
    reward_boxed: Real = Field(default=10.0, ge=-1e6, description="reward of a wrong answer that is boxed")
    validation_problems: Whole = Field(default=256, ge=1, description="held out of the train set")
    validate_every: Whole = Field(
        default=50, ge=1, description="steps between validations, at which checkpoints compete"
    )
    checkpoint_steps: Annotated[list[Annotated[Whole, Field(ge=1)]], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="[from, to]: only checkpoints of these steps compete; null: all"
    )

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, objective: str | Reference) -> str | Reference:
        return known(objective, BUILT_IN_OBJECTIVES)

    @model_validator(mode="after")
    def _range(self) -> TrainingSettings:
        if self.checkpoint_steps is not None and self.checkpoint_steps[0] > self.checkpoint_steps[1]:
            raise ValueError(f"checkpoint_steps: {self.checkpoint_steps} is not a range [from, to]")
        return self

    @property
    def forms_ratios(self) -> bool:
        """Whether a built-in objective compares probabilities with those before the step."""
        return self.objective in ("grpo", "ppo-clip")

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """Yields the settings that change nothing beside the others, and on what they have no effect."""
        if self.updates_per_step == 1 and not isinstance(self.objective, Reference) and not is_plugin(self.objective):
            yield "clip_range", "a single update on each rollout, whose ratios are all 1"
        if self.estimator == "score":
            yield "adjoint_iterations", "estimator: score, which has no adjoint"

    def beside_pathwise(self) -> Iterator[tuple[str, object, str]]:
        """Yields the settings that exclude a gradient through the CoT: name, value, and the value that it needs."""
        if self.objective != "rloo":
            yield "objective", self.objective, "rloo"
        if not self.cot_term:
            yield "cot_term", "false", "true"
        if self.kl_coefficient > 0:
            yield "kl_coefficient", self.kl_coefficient, "0"

    @property
    def regularised(self) -> bool:
        """Whether the loss has terms that do not depend on rewards."""
        return self.entropy_bonus > 0 or self.kl_coefficient > 0


class GenerationSettings(Settings):
    """How far and how evaluation generates; a test set may carry its own."""

    max_cot_tokens: Whole = Field(default=512, ge=1)
    max_answer_tokens: Whole = Field(default=32, ge=1)
    stop_on: Literal["shadow", "nearest"] = "shadow"


ChoiceFormat = Literal["letters", "cloze"]


class EvaluationSettings(GenerationSettings):
    """Settings shared by all evaluation jobs."""

    choice_format: ChoiceFormat = Field(default="letters", description="how choice sets are scored")


class SchedulerSettings(Settings):
    """What a job asks the scheduler for."""

    threads: Threads = Field(default=1, ge=1, description="CPU threads of one job")
    memory_mb: Whole = Field(
        default=4000, ge=1, description="memory that such a job asks the scheduler for; a quarter more with each retry"
    )
    runtime_min: Whole = Field(default=240, ge=1, description="minutes that such a job asks the scheduler for")


class DeviceSettings(Settings):
    """Where a model runs, and in which precision."""

    gpus: int = Field(default=0, ge=0, le=1, description="GPUs that training and evaluation ask the scheduler for")
    device: str = Field(default="auto", description="auto (a GPU where `gpus` asks for one, else the CPU), cpu, cuda:0")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="working copy of the weights; auto: bf16 on GPU, fp32 on CPU"
    )
    optimizer_device: Literal["same", "cpu"] = Field(
        default="same",
        description="where training keeps fp32 weights and moments: beside the working copy (12 bytes a parameter), or"
        " in the host's memory (16, with a copy of the gradient)",
    )
    cuda_graphs: bool = Field(
        default=False,
        description="record decode steps as CUDA graphs and replay them; for a GPU, which otherwise waits",
    )

    @model_validator(mode="after")
    def _a_device(self) -> DeviceSettings:
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"device: {self.device!r} is not a device; use auto, cpu, cuda or cuda:0")
        return self


class SizeSettings(Settings):
    """How much is done at a time; this can change the order of sums, but nothing else."""

    rollout_rows: Whole = Field(
        default=256, ge=1, description="trajectories generated side by side outside of training"
    )
    rollout_tokens: Whole = Field(
        default=131072,
        ge=1,
        description="positions, of prompts and rows, for which evaluation and validation have room; what all prompts"
        " begin with counts once",
    )
    micro_batch_tokens: Whole = Field(
        default=16384,
        ge=1,
        description="tokens, of prompts and rows, whose activations training holds at a time; halved if a GPU runs"
        " out of memory",
    )
    tile_tokens: Whole = Field(default=512, ge=1, description="tokens whose vocabulary-sized tensors exist at one time")
    reward_workers: Threads = Field(default=1, ge=1)
    save_every: Whole = Field(default=50, ge=1, description="training steps between resumable saves")


Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab"]


class RuntimeSettings(SchedulerSettings, DeviceSettings, SizeSettings):
    """The settings of the machine; they are never part of a result's identity."""

    trackers: list[Tracker] = Field(
        default_factory=list, description="experiment trackers to which trainings log live, through accelerate"
    )


class ToySettings(Settings):
    """The embedded default model: a small body trained in the workflow on imperfect demonstrations, or left random."""

    width: Size = Field(default=128, ge=1)
    layers: Size = Field(default=4, ge=1)
    heads: Size = Field(default=4, ge=1)
    mlp_width: Size = Field(default=512, ge=1)
    tied: bool = True
    architecture: Literal["llama", "qwen2"] = "llama"
    tokenizer: Literal["words", "bpe", "llama-3", "qwen-2.5"] = Field(
        default="words", description="made here, or a published model's, at its full vocabulary (extra `tokenizers`)"
    )
    vocabulary: Size = Field(default=2048, ge=1, description="tokens of the bpe tokenizer")
    steps: Whole = Field(default=500, ge=0, description="0 leaves the weights random")
    batch: Whole = Field(default=32, ge=1)
    learning_rate: Real = Field(default=2e-3, gt=0)
    wrong: Number = Field(
        default=0.55, ge=0, le=1, description="share of demonstrations that give an intermediate result"
    )
    unboxed: Number = Field(default=0.2, ge=0, le=1, description="share of demonstrations without a box")
    seed: Seed = 0
    threads: Threads = Field(default=2, ge=1, description="of its training; their number decides how sums are rounded")

    @model_validator(mode="after")
    def _possible(self) -> ToySettings:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width: {self.width} is not a multiple of 2 x heads ({self.heads}), which rotary positions need"
            )
        return self
