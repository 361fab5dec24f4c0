"""What a rollout recorded of its soft CoT tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from softtok.method.steps import HiddenRecord, LogitRecord, Record
from softtok.method.trajectories import Rollout


def record_of(out: Rollout) -> Record:
    """Returns the record of a rollout that has one."""
    assert out.record is not None, "the rollout was recorded"
    return out.record


def fed(out: Rollout) -> torch.Tensor:
    """Returns what soft CoT tokens were fed as, shape (N, T, D)."""
    return record_of(out).x_NTD


def means(out: Rollout) -> torch.Tensor:
    """Returns the means of the actions, shape (N, T, D)."""
    return record_of(out).mean_NTD


def actions(out: Rollout) -> torch.Tensor:
    """Returns the actions of noise on the hidden state, shape (N, T, D)."""
    assert isinstance(out.record, HiddenRecord)
    return out.record.action_NTD


def logit_record(out: Rollout) -> LogitRecord:
    """Returns the record of noise on the logits."""
    assert isinstance(out.record, LogitRecord)
    return out.record


def change_record(out: Rollout, **fields: Any) -> None:
    """Puts other tensors or draws into the record."""
    out.record = dataclasses.replace(record_of(out), **fields)
