"""Evaluation: one record per sample, shards that make a crash or a new mode cost only what is missing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from softtok.config.settings import ChoiceFormat, RuntimeSettings
from softtok.errors import UserError
from softtok.evaluation import evaluate as module
from softtok.evaluation.choices import choices
from softtok.evaluation.evaluate import evaluate
from softtok.method.stream import Finished, Room, stream
from softtok.method.trajectories import Batch, Policy
from softtok.models.base_model import base_run
from softtok.storage.locks import Interruption, exclusive_lock
from softtok.storage.shards import Shard
from tests.support.damage import changed_copy
from tests.support.processes import noted_stderr, until
from tests.support.specs import EVALUATION_MODES, base_spec, choices_spec, toy_model
from tests.support.specs import evaluation_spec as spec


@pytest.fixture
def run(tmp_path: Path, tiny_toy: Path) -> Path:
    base_run(base_spec(toy_model()), tiny_toy, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples of every problem that is made."""
    counts: list[int] = []

    def counting(policy: Policy, batch: Batch, room: Room) -> Iterator[Finished]:
        for finished in stream(policy, batch, room):
            counts.extend(len(made.answers) for _, made in finished)
            yield finished

    monkeypatch.setattr(module, "stream", counting)
    return counts


def test_records(run: Path, toy_sets: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "eval" / "six.parquet"
    evaluate(spec(*EVALUATION_MODES), RuntimeSettings(), run, toy_sets["test"], out)
    table = pd.read_parquet(out)
    assert list(table.columns) == module.SCHEMA.names
    assert table.groupby("inference_mode").size().to_dict() == {
        name: 6 * mode.samples for name, mode in EVALUATION_MODES.items()
    }
    assert not table.duplicated(["inference_mode", "problem_id", "sample"]).any()
    assert set(table.stop) <= {"phrase", "eos", "cap"}
    assert table.cot_tokens.between(1, 16).all()
    assert (table.cot_tokens[table.stop == "cap"] == 16).all()
    assert table.answer.str.contains(r"\boxed{", regex=False).all(), "the reward reads the prefilled opening too"
    assert (table.status == "correct").eq(table.correct).all()
    # Fuzzy without noise is hard greedy, in text as in tokens.
    pick = table.set_index(["inference_mode", "problem_id"])
    assert (pick.loc["hard-greedy"].cot == pick.loc["fuzzy-greedy"].cot).all()
    profile = pd.read_csv(out.with_suffix(".entropy.csv"))
    first = profile[profile["index"] == 0].set_index("inference_mode")["count"]
    assert first.to_dict() == {name: 6 * mode.samples for name, mode in EVALUATION_MODES.items()}, (
        "every generation has a first token"
    )
    lengths = table[table.inference_mode == "hard-sample"].cot_tokens
    counts = profile[profile.inference_mode == "hard-sample"]["count"].tolist()
    assert counts == [(lengths > t).sum() for t in range(lengths.max())], "over the generations still thinking at t"


def test_a_new_mode_and_a_crash_cost_only_what_is_missing(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, generated: list[int]
) -> None:
    evaluate(spec("hard-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "one.parquet")
    assert sum(generated) == 24
    evaluate(spec("hard-sample", "soft-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "two.parquet")
    assert sum(generated) == 48
    evaluate(spec("soft-sample", "hard-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "three.parquet")
    assert sum(generated) == 48
    # A crash in the middle of a line: that problem is generated again, the others are not.
    shard = max((run / ".state" / "shards").iterdir())
    shard.write_text(shard.read_text()[:-40])
    evaluate(spec("hard-sample", "soft-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "four.parquet")
    assert sum(generated) == 52
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "two.parquet"), pd.read_parquet(tmp_path / "four.parquet"))


def test_damaged_lines_of_a_shard_are_made_again(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, generated: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a line with others behind it, bytes that are no text, a line that is no object: the rest stays."""
    evaluate(spec("hard-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "a.parquet")
    (shard,) = (run / ".state" / "shards").iterdir()
    whole = shard.read_bytes()
    lines = whole.split(b"\n")
    lines[2], lines[4], lines[5] = lines[2][:50], b"\xff" + lines[4], b"7"
    shard.write_bytes(b"\n".join(lines))
    evaluate(spec("hard-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "b.parquet")
    assert sum(generated) == 24 + 3 * 4
    assert f"{shard}: damaged lines (3); what stood there is made again" in capsys.readouterr().err
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), pd.read_parquet(tmp_path / "b.parquet"))
    kept = [line for place, line in enumerate(whole.split(b"\n")[:-1]) if place not in (2, 4, 5)]
    assert shard.read_bytes().split(b"\n")[: len(kept)] == kept


def test_a_damaged_checkpoint_manifest_is_one_line(run: Path, toy_sets: dict[str, Path], tmp_path: Path) -> None:
    manifest = run / "checkpoint" / "checkpoint.json"
    manifest.write_text(manifest.read_text()[:20])
    with pytest.raises(UserError, match=rf"^{manifest} cannot be read .*remove the folder {manifest.parent} and run"):
        evaluate(spec("hard-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "a.parquet")


def test_records_do_not_depend_on_the_batch(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, tiny_toy: Path
) -> None:
    other = tmp_path / "other"
    base_run(base_spec(toy_model()), tiny_toy, other)
    evaluate(spec(*EVALUATION_MODES), RuntimeSettings(), run, toy_sets["test"], tmp_path / "a.parquet")
    evaluate(spec(*EVALUATION_MODES), RuntimeSettings(rollout_rows=1), other, toy_sets["test"], tmp_path / "b.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), pd.read_parquet(tmp_path / "b.parquet"))


def test_another_checkpoint_or_setting_has_shards_of_its_own(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, generated: list[int], tiny_toy: Path
) -> None:
    evaluate(spec("hard-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "a.parquet")
    base_run(base_spec(toy_model()), changed_copy(tiny_toy, tmp_path / "changed"), run)
    evaluate(spec("hard-sample"), RuntimeSettings(), run, toy_sets["test"], tmp_path / "b.parquet")
    shorter = spec("hard-sample", max_cot_tokens=8)
    evaluate(shorter, RuntimeSettings(), run, toy_sets["test"], tmp_path / "c.parquet")
    assert sum(generated) == 3 * 24


def test_a_shard_holds_any_character(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0c\x1c", "a\r\nb"]
    Shard(tmp_path / "shard.jsonl", {"a": 1}).append([{"cot": text} for text in texts])
    assert [line["cot"] for line in Shard(tmp_path / "shard.jsonl", {"a": 1}).lines] == texts


def test_one_job_at_a_time_completes_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inference sets with a mode in common, evaluated side by side."""
    monkeypatch.setattr("softtok.storage.locks.LOCK_POLL_S", 0.01)
    printed = noted_stderr(monkeypatch)
    path = tmp_path / "locks" / "a"
    order: list[str] = []
    held, interruption = threading.Event(), Interruption()

    def other() -> None:
        held.wait()
        with exclusive_lock(path, interruption):
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with exclusive_lock(path, interruption):
        held.set()
        until(lambda: "waiting for another job" in printed.getvalue())
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
    interruption.signal = signal.SIGTERM
    with exclusive_lock(path, interruption), pytest.raises(SystemExit), exclusive_lock(path, interruption):
        pytest.fail("a job that is told to stop does not wait")


def test_shard_refuses_another_header(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "shard.jsonl", {"a": 1})
    shard.append([{"x": 1}])
    assert Shard(tmp_path / "shard.jsonl", {"a": 1}).lines == [{"x": 1}]
    assert Shard(tmp_path / "shard.jsonl", {"a": 2}).lines == []


@pytest.mark.parametrize("choice_format", ["letters", "cloze"])
def test_choices_are_scored_once_each(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, choice_format: ChoiceFormat
) -> None:
    out = tmp_path / "choices.parquet"
    choices(choices_spec(choice_format), RuntimeSettings(), run, toy_sets["choice"], out)
    table, questions = pd.read_parquet(out), pd.read_parquet(toy_sets["choice"])
    assert table.id.tolist() == questions.id.tolist()
    assert (table.correct == (table.predicted.to_numpy() == questions.answer.to_numpy())).all()
    assert (table.nll > 0).all()
    assert (table.tokens >= 1).all()
