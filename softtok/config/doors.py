"""The keys of config.yaml that accept a user's code, except `reward:` and `adapter:` of a data set (`problems/`)."""

from __future__ import annotations

from softtok import plugins
from softtok.config.messages import config_error
from softtok.config.schema import Config
from softtok.config.settings import BUILT_IN_OBJECTIVES, BUILT_IN_TOKENS, SampledMode, TokenMode, TrainingSettings
from softtok.config.specs import part
from softtok.errors import UserError
from softtok.plugins import Door, Form, Reference

TOKENS = Door(
    "tokens",
    built_in=BUILT_IN_TOKENS,
    methods={"step": ("predicted", "draw"), "score": ("predicted", "ids_M", "record", "at")},
)
OBJECTIVE = Door("objective", built_in=BUILT_IN_OBJECTIVES, methods={"advantages": ("rewards_BG",)})
FIGURES = Door("figures", forms=(Form(("metrics", "training")),))


def locate(door: Door, choice: str | Reference | None, config: Config, where: str = "") -> str | Reference | None:
    """Returns a choice with its code located, if it names any. Raises UserError, which names the key `where`."""
    if not isinstance(choice, str):
        return choice
    try:
        return plugins.locate(choice, door, config.folders)
    except UserError as error:
        raise config_error(where or door.key, str(error).removeprefix(f"{door.key}: ")) from None


def reference(door: Door, choice: str | None, config: Config, where: str = "") -> Reference | None:
    """Returns the user's code that a choice names; None for a built-in name, or no choice. Errors as in `locate`."""
    found = locate(door, choice, config, where)
    return found if isinstance(found, Reference) else None


def token_mode(entry: TokenMode, config: Config) -> TokenMode:
    """Returns a training mode as specs hold it."""
    mode = part(TokenMode, entry)
    return mode.model_copy(update={"tokens": locate(TOKENS, mode.tokens, config)})


def sampled_mode(entry: SampledMode, config: Config) -> SampledMode:
    """Returns an inference mode as specs hold it."""
    mode = part(SampledMode, entry)
    return mode.model_copy(update={"tokens": locate(TOKENS, mode.tokens, config)})


def training(settings: TrainingSettings, config: Config) -> TrainingSettings:
    """Returns the settings of a run as specs hold them."""
    return settings.model_copy(update={"objective": locate(OBJECTIVE, settings.objective, config)})
