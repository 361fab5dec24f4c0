"""The workflow as Snakemake runs it: which jobs a configuration means, and which jobs an edit causes.

A stand-in for `softtok` writes its outputs at once (tests.support.stand_in). `snakemake` is always the bare command, so
that profiles/default is part of what is tested.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from softtok.__main__ import main
from softtok.config.specs import ReportSpec, parse
from softtok.config.work import jobs_of, study_of
from tests.support.disks import make_read_only, small_disk
from tests.support.project import BIN, ROOT, Project, counts, dry_run, shipped
from tests.support.stand_in import ENVIRONMENT, FIRST, STAND_IN, TINY, StandInProject, tiny


@pytest.fixture
def project(tmp_path: Path) -> StandInProject:
    return tiny(tmp_path / "project")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StandInProject:
    """The project after its first study was built; not to be changed."""
    project = tiny(tmp_path_factory.mktemp("finished") / "project")
    assert project.jobs() == FIRST
    return project


@pytest.fixture
def done(finished: StandInProject, tmp_path: Path) -> StandInProject:
    """A copy of the finished project, with its metadata and times."""
    return finished.copy(tmp_path / "done")


def test_a_second_run_has_nothing_to_do(done: StandInProject) -> None:
    again = done.snakemake()
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout
    assert done.jobs() == set()


def test_a_new_seed_adds_its_jobs_and_the_report(done: StandInProject) -> None:
    done.edit(lambda config: config["studies"]["first"].update(seeds=[0, 1]))
    assert done.jobs() == {
        "train results/runs/toy/sums/hard/seed1",
        "evaluate results/runs/toy/sums/hard/seed1/eval/sums/all-modes.parquet",
        "choices results/runs/toy/sums/hard/seed1/choices/words.parquet",
        "report results/reports/first",
    }


def test_a_new_test_set_adds_one_evaluation_per_checkpoint_and_no_training(done: StandInProject) -> None:
    done.edit(lambda config: config["studies"]["first"].update(test_sets=["sums", "long-sums"]))
    assert done.jobs() == {
        "data results/data/test/long-sums.parquet",
        "evaluate results/runs/toy/none/base/seed0/eval/long-sums/all-modes.parquet",
        "evaluate results/runs/toy/sums/hard/seed0/eval/long-sums/all-modes.parquet",
        "report results/reports/first",
    }


def test_a_new_training_mode_adds_its_runs(done: StandInProject) -> None:
    done.edit(lambda config: config["studies"]["first"].update(training_modes=["hard", "soft"]))
    assert done.jobs() == {
        "train results/runs/toy/sums/soft/seed0",
        "evaluate results/runs/toy/sums/soft/seed0/eval/sums/all-modes.parquet",
        "choices results/runs/toy/sums/soft/seed0/choices/words.parquet",
        "report results/reports/first",
    }


EVALUATIONS = {job for job in FIRST if job.startswith("evaluate")}


def test_a_new_inference_mode_opens_every_evaluation_and_nothing_else(done: StandInProject) -> None:
    done.edit(lambda config: config["inference_sets"]["all-modes"].append("soft-greedy"))
    assert done.jobs() == EVALUATIONS | {"report results/reports/first"}
    assert len(list((done.folder / "results/runs/toy/sums").glob("hard/*/eval/sums/*.entropy.csv"))) == 2, (
        "the old cells stay"
    )


def test_a_changed_mode_makes_its_runs_anew_and_changing_it_back_makes_nothing(done: StandInProject) -> None:
    done.edit(lambda config: config["training_modes"]["hard"].update(temperature=0.8))
    changed = {job for job in FIRST if "/hard/" in job} | {"report results/reports/first"}
    assert done.jobs() == changed
    assert len(list((done.folder / "results/runs/toy/sums/hard").iterdir())) == 2, "the old run stays"
    done.edit(lambda config: config["training_modes"]["hard"].update(temperature=1.0))
    assert done.jobs() == {"report results/reports/first"}, "the old run is found again; only the tables change back"
    assert done.jobs() == set()


def test_studies_share_what_coincides(done: StandInProject) -> None:
    assert done.jobs("second") == {
        "train results/runs/toy/sums/soft/seed0",
        "evaluate results/runs/toy/sums/soft/seed0/eval/sums/all-modes.parquet",
        "report results/reports/second",
    }
    assert done.jobs() == set()
    assert done.jobs("first", "second") == set()


def test_order_comments_and_machine_settings_change_nothing(done: StandInProject) -> None:
    def turned(value: Any) -> Any:
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    path = done.folder / "config.yaml"
    path.write_text("# a comment\n" + yaml.safe_dump(turned(done.config), sort_keys=False, default_flow_style=False))
    assert done.jobs() == set()
    done.edit(lambda config: config.update(runtime={"threads": 2, "precision": "fp32", "memory_mb": 9000, "gpus": 1}))
    assert done.jobs() == set()
    done.edit(lambda config: config["models"]["toy"].update(runtime={"rollout_rows": 7}))
    assert done.jobs() == set()
    assert done.jobs("--config", "data_root=.") == set()


def test_a_new_order_of_a_studys_list_is_a_new_order_in_its_report(done: StandInProject) -> None:
    done.edit(lambda config: config["inference_sets"]["all-modes"].reverse())
    told = [line for line in done.snakemake("-n").stdout.split("\n") if "reason: " in line]
    assert "results/specs/first-" in told[0] and max(map(len, told)) < 1000, "names of files, not specs of many pages"
    assert done.jobs() == {"report results/reports/first"}


def test_data_and_models_that_are_made_again_do_not_redo_what_was_made_of_them(done: StandInProject) -> None:
    made = [str(path.relative_to(done.folder)) for path in (done.folder / "results").glob("data/*/*.parquet")]
    made += [str(path.relative_to(done.folder)) for path in (done.folder / "results").glob("models/*")]
    shutil.rmtree(done.folder / "results/data")
    shutil.rmtree(done.folder / "results/models")
    assert done.jobs() == set(), "nothing needs them"
    assert done.jobs(*made) == {job for job in FIRST if job.startswith(("data", "model"))}
    done.edit(lambda config: config["studies"]["first"].update(seeds=[0, 1]))
    assert done.jobs() == {
        "train results/runs/toy/sums/hard/seed1",
        "evaluate results/runs/toy/sums/hard/seed1/eval/sums/all-modes.parquet",
        "choices results/runs/toy/sums/hard/seed1/choices/words.parquet",
        "report results/reports/first",
    }


def test_a_lost_checkpoint_is_made_again_when_it_is_needed_and_measured_anew(done: StandInProject) -> None:
    run = next((done.folder / "results/runs/toy/sums/hard").iterdir())
    shutil.rmtree(run / "checkpoint")
    assert done.jobs() == set()
    done.edit(lambda config: config["studies"]["first"].update(test_sets=["sums", "long-sums"]))
    assert done.snakemake().returncode == 0
    commands = [call.split()[0] for call in (done.folder / "calls.txt").read_text().split("\n")[:-1]]
    assert Counter(commands) == {"data": 1, "train": 1, "evaluate": 3, "choices": 1, "report": 1}


def test_a_failed_job_says_why_and_the_rest_goes_on(project: StandInProject) -> None:
    failed = project.snakemake(FAIL="base")
    assert failed.returncode == 1
    assert "softtok: error: no such thing" in failed.stdout
    assert "`softtok report STUDY --partial` shows the results so far" in failed.stdout
    calls = (project.folder / "calls.txt").read_text()
    assert "report results/reports/first/partial" in calls, "of what has finished there is a report"
    assert "softtok: what has finished: results/reports/first/partial/report.html" in failed.stdout
    assert "evaluate results/runs/toy/sums/hard/" in calls
    assert calls.count("base ") == 1, "a failure that is not the network's is not tried again"
    assert project.jobs() == {job for job in FIRST if "/base/" in job} | {"report results/reports/first"}


@pytest.mark.parametrize("words", [["-q"], ["-q", "all"]])
def test_a_failed_jobs_own_line_is_on_the_terminal_when_snakemake_is_quiet(
    words: list[str], project: StandInProject
) -> None:
    """Of jobs that fail now: the log of one that failed before says nothing about today."""
    older = project.results / "logs" / "older.log"
    older.parent.mkdir(parents=True)
    older.write_text("softtok: error: long ago\n")
    os.utime(older, (1, 1))
    done = project.snakemake(*words, FAIL="train")
    assert done.returncode != 0
    told = [line for line in done.stdout.splitlines() if line.startswith("softtok: error: ")]
    assert len(told) == 1
    assert re.fullmatch(
        r"softtok: error: no such thing \(results/logs/runs/toy/sums/hard/seed0-\w+/train.log\)", told[0]
    )


@pytest.mark.parametrize("words", [[], ["-q"], ["-q", "all"]])
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_takes_no_file_is_one_line(words: list[str], number: int, tmp_path: Path) -> None:
    """Before Snakemake starts, which shows a traceback, or nothing where it is quiet."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        project = tiny(disk / "project")
        if number == errno.EROFS:
            make_read_only(disk)
        else:
            with contextlib.suppress(OSError):
                (disk / "filler").write_bytes(bytes(2**20))
        done = project.snakemake(*words)
    told = [line for line in done.stdout.splitlines() if line.startswith("softtok: error: ")]
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert len(told) == 1 and os.strerror(number) in told[0] and str(disk) in told[0]


ASKED = re.compile(r"^(?:local)?rule train:\n(?: .*\n)*?    resources: .*?mem_mb=(\d+)", re.MULTILINE)
"""The memory of an attempt at a training."""


def test_a_job_that_fails_without_a_word_asks_for_a_little_more_memory(project: StandInProject) -> None:
    """A quarter, and twice at most: twice the memory of a large node is not to be had."""
    tried = project.snakemake("--retries", "3", "--cores", "1", "--quiet", "host", "--show-failed-logs", FAIL="train")
    assert ASKED.findall(tried.stdout) == ["4000", "5000", "6000", "6000"]


STOPS = """
    echo $((++n)) >> n.txt
    who='"host": "h", "pid": '$n', '
    echo '{"event": "start", '$who'"saved": '$((n - 1))'}' >> "$out/.state/attempts.jsonl"
    echo '{"event": "interrupted", '$who'"code": 75}' >> "$out/.state/attempts.jsonl"
    echo $n > "$out/.state/step"
    seq 200
    echo "softtok: stopped by SIGTERM; progress is saved"
    [ $n -gt 5 ] || return 75
"""


def test_stops_at_time_limits_go_on_with_the_same_memory_and_take_a_line_each(project: StandInProject) -> None:
    """More than three, which once were the most; `retries` is that of the profile for Slurm."""
    stop = f'[ $command = train ] && {{ n=$(cat n.txt 2>/dev/null | wc -l); mkdir -p "$out/.state"; {STOPS} }}\n'
    project.environment["BASH_FUNC_softtok%%"] = STAND_IN.replace(
        "    case $command in\n", f"{stop}    case $command in\n"
    )
    retries = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())["retries"]
    few = project.snakemake("--retries", "1", "--cores", "1", "--quiet", "host", "--show-failed-logs")
    assert few.returncode == 1 and few.stdout.count("softtok: stopped by SIGTERM") == 2 + 1, "and once more at the end"
    done = project.snakemake("--retries", str(retries), "--cores", "1", "--quiet", "host")
    assert done.returncode == 0, done.stdout
    assert ASKED.findall(few.stdout + done.stdout) == ["4000"] * 6
    told = [line for line in (few.stdout + done.stdout).splitlines() if "progress is saved" in line]
    log = r"\(results/logs/runs/toy/sums/hard/seed0-\w+/train.log\)"
    assert all(re.fullmatch(rf"softtok: stopped by SIGTERM; progress is saved {log}", line) for line in told)
    assert len(told) == 5 + 1
    assert "Error in rule" not in few.stdout and "\n150\n" not in few.stdout, "neither the spec nor the log"


def test_a_refused_job_asks_for_next_to_nothing(project: StandInProject) -> None:
    """So the attempts that Snakemake has left do not wait for a GPU."""
    fail = """
        [ $command = train ] && {
            mkdir -p "$out/.state"
            echo '{"event": "start", "host": "h", "pid": '$RANDOM', "saved": null}' >> "$out/.state/attempts.jsonl"
        }
    """
    project.environment["BASH_FUNC_softtok%%"] = STAND_IN.replace(
        "    case $command in\n", f"{fail}    case $command in\n"
    )
    project.environment["BASH_FUNC_softtok%%"] = project.environment["BASH_FUNC_softtok%%"].replace(
        "base | train)", "base | train)\n            [ $command = train ] && return 1;"
    )
    project.edit(lambda config: config.update(runtime={"gpus": 1}))
    tried = project.snakemake("--retries", "5", "--cores", "1", "--quiet", "host")
    assert ASKED.findall(tried.stdout) == ["4000", "5000", "6000", "1000", "1000", "1000"]
    asked = re.findall(r"rule train:\n(?: .*\n)*?    resources: (.*)", tried.stdout)
    assert ["gpu=1" in resources for resources in asked] == [True] * 3 + [False] * 3
    assert "--attempt 6" in tried.stdout


def test_what_fails_is_tried_once_and_its_spec_printed_once(project: StandInProject) -> None:
    """The command asks a busy hub again itself; the rule cannot know what is worth a second try, even on a cluster."""
    failed = project.snakemake("--retries", "2", "--cores", "1", "--quiet", "host", FAIL="data model")
    assert failed.returncode == 1
    calls = (project.folder / "calls.txt").read_text()
    assert calls.count("data results/data/choice/words") == calls.count("model ") == 1
    study = project.grid().studies["first"]
    specs = {run.model.json for run in study.runs.values()}
    specs |= {test.data.json for tests in study.evaluations.values() for test in tests.values()}
    specs |= {choice.data.json for choices in study.choices.values() for choice in choices.values()}
    assert len(specs) == failed.stdout.count("Error in rule") == 3
    for spec in specs:
        assert failed.stdout.count(f"--spec {shlex.quote(spec)}") == 1
    assert failed.stdout.count("its command returned non-zero exit status 1") == 3


def test_the_terminal_shows_counts_first_and_a_line_when_a_job_begins_or_ends(project: StandInProject) -> None:
    told = project.snakemake("--cores", "1").stdout
    begun = re.findall(r"^\d\d:\d\d begins: (.*)", told, re.MULTILINE)
    ended = re.findall(r"^\d\d:\d\d done: (.*); (\d+) of 13$", told, re.MULTILINE)
    expected = {"train toy/sums/hard/seed0", "evaluate toy/sums/hard/seed0/sums/all-modes", "dataset choice/words"}
    assert len(begun) == 12 and begun[-1] == "report first" and expected < {*begun}
    assert ended == [(name, str(number)) for number, name in enumerate(begun, 1)]
    assert told.index("\ntotal ") < told.index(" begins: ")
    assert max(map(len, told.splitlines())) < 200 and "{" not in told and "Select jobs" not in told


def test_what_failed_is_named_at_the_end_by_the_last_words_of_its_log(project: StandInProject) -> None:
    """With softtok's own line, or with what a traceback ends in."""
    failed = project.snakemake("--cores", "1", FAIL="train", BREAK="choices")
    assert failed.returncode == 1 and max(map(len, failed.stdout.splitlines())) < 300
    for words in (
        "train toy/sums/hard/seed0: softtok: error: no such thing (",
        "choices toy/none/base/seed0/words: RuntimeError: no luck (",
    ):
        assert len(re.findall(rf"^\d\d:\d\d failed: {re.escape(words)}", failed.stdout, re.MULTILINE)) == 1
    end = failed.stdout[failed.stdout.rindex(" failed: ") :].splitlines()[1:]
    told = [line for line in end if line.startswith("softtok: error: ")]
    assert len(told) == 2
    assert told[0].startswith("softtok: error: choices toy/none/base/seed0/words: RuntimeError: no luck (results/logs/")
    assert told[1].startswith("softtok: error: no such thing (results/logs/runs/toy/sums/hard/")
    assert "no luck" not in project.snakemake("--cores", "1").stdout


def test_a_dry_run_has_a_line_and_a_reason_for_each_job_and_its_command_if_asked(project: StandInProject) -> None:
    dry = project.snakemake("-n")
    assert max(map(len, dry.stdout.splitlines())) < 200
    assert dry.stdout.count("\n    reason: ") == sum(counts(dry).values()) - 1 == 12
    assert "\nevaluate toy/sums/hard/seed0/sums/all-modes\n    reason: Missing output files: " in dry.stdout
    commands = project.snakemake("-n", "-p").stdout
    assert all(shlex.quote(run.json) in commands for run in project.grid().studies["first"].runs.values())
    assert "reason: " not in project.snakemake("-n", "-q").stdout


def test_rules_use_the_python_of_the_environment_without_activation(finished: StandInProject) -> None:
    assert set((finished.folder / "pythons.txt").read_text().split()) == {str(BIN / "python")}


@pytest.mark.parametrize(
    ("change", "message", "words"),
    [
        (
            lambda config: config["studies"]["first"].update(training_modes=["hrad"]),
            "studies.first.training_modes: there is no training mode 'hrad'; did you mean 'hard'?",
            ["-n"],
        ),
        (
            lambda config: config["training_modes"]["soft"].update(noise_scal=1),
            "training_modes.soft.noise_scal: unknown key; did you mean 'noise_scale'?",
            [],
        ),
        (
            lambda config: (
                config["models"].update(mine={"path": "nowhere", "training": config["models"]["toy"]["training"]}),
                config["studies"]["second"].update(models=["mine"]),
            ),
            "models.mine.path: the folder 'nowhere' does not exist; a Hugging Face folder is needed",
            ["-n", "second"],
        ),
    ],
)
def test_mistakes_stop_everything_with_one_line_though_all_outputs_exist(
    done: StandInProject, change: Callable[[dict[str, Any]], Any], message: str, words: list[str]
) -> None:
    done.edit(change)
    (done.folder / "calls.txt").unlink()
    stopped = done.snakemake(*words)
    assert stopped.returncode == 1
    lines = stopped.stdout.strip().split("\n")
    assert lines[-1] == f"softtok: error: config: {message}"
    assert len(lines) <= 2, "beside the mistake there is only Snakemake's word on the profile"
    assert not (done.folder / "calls.txt").exists()


def test_repeated_keys_and_command_line_settings_are_seen(done: StandInProject) -> None:
    assert done.snakemake("-n", "--config", "data_rot=x").stdout.strip().endswith("did you mean 'data_root'?")
    done.path.write_text(TINY + "  first: {}\n")
    assert "config: studies.first: this key appears twice in config.yaml" in done.snakemake("-n").stdout


def test_a_hostile_configuration_is_one_line_before_snakemake_reads_it(project: StandInProject) -> None:
    for line in ("x: &x {y: *x}\n", "x: " + "{a: " * 900 + "1" + "}" * 900 + "\n", "training: {steps: 010}\n"):
        project.path.write_text(TINY + line)
        told = project.snakemake("-n").stdout.strip().split("\n")
        assert told[-1].startswith("softtok: error: config: ") and len(told) <= 2, told[-3:]


def test_a_project_in_a_folder_with_braces_is_told_in_one_line(finished: StandInProject, tmp_path: Path) -> None:
    told = finished.copy(tmp_path / "{y}").snakemake("-n").stdout.strip().split("\n")
    assert "softtok: error: Snakemake takes braces in a path for wildcards; rename the folder" in told[-1]
    assert len(told) <= 2


def test_projects_lie_in_folders_of_any_other_name(finished: StandInProject, tmp_path: Path) -> None:
    there = finished.copy(tmp_path / "[x] $z 'q'")
    assert "Nothing to be done" in there.build()
    there.edit(lambda config: config["choice_sets"].update(more={"toy": {"task": "choice", "problems": 6}}))
    there.edit(lambda config: config["studies"]["first"]["choice_sets"].append("more"))
    assert "data results/data/choice/more.parquet" in there.jobs()


TITLE = "</script><script>alert(1)</script> <!-- & 'a' \"b\" \u2028 {y} {wildcards} $HOME `ls` \\"


def test_no_text_of_a_configuration_is_run_by_the_page_of_snakemakes_report(done: StandInProject) -> None:
    """Titles, prompts and folders stand in params; the page keeps these in scripts."""
    folder = done.folder / "<script>alert(2)<" / "script>"
    folder.mkdir(parents=True)
    done.edit(lambda config: config["studies"]["first"].update(title=TITLE))
    done.edit(lambda config: config["models"]["toy"].update(prompt=f"{TITLE} {{question}}"))
    (folder / "local.jsonl").write_text(json.dumps({"q": "1 + 1?", "a": f"{TITLE} 2"}))
    local = {"file": {"path": "local.jsonl"}, "question": "q", "gold": {"field": "a", "after": TITLE}}
    done.edit(lambda config: config["test_sets"].update(local=local))
    done.edit(lambda config: config["train_sets"]["sums"]["exclude"].append("local"))
    done.edit(lambda config: config.update(data_root=str(folder)))
    done.build()
    done.build("--report", "page.zip")
    with zipfile.ZipFile(done.folder / "page.zip") as file:
        (name,) = [name for name in file.namelist() if name.endswith("report.html") and name.count("/") == 1]
        page = file.read(name).decode()
    assert "results/reports/first/report.html" in page
    assert "arXiv 2509.19170" in page, "the front text"
    assert "alert(" not in page


def test_another_configuration_replaces_the_shipped_one(project: StandInProject) -> None:
    (project.folder / "other.yaml").write_text(yaml.safe_dump({**project.config, "run": ["second"]}))
    project.config = shipped()
    listed = project.snakemake("-n", "--quiet", "rules", "--configfile", "other.yaml", "--replace-workflow-config")
    assert counts(listed) == {
        "dataset": 2,
        "model": 1,
        "base": 1,
        "train": 2,
        "evaluate": 3,
        "report_spec": 1,
        "report": 1,
        "all": 1,
    }


def test_commands_find_the_configuration_that_a_study_was_begun_with(
    project: StandInProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        "train_sets": {"mine": {"file": {"path": "mine.jsonl"}, "question": "q", "gold": {"field": "a"}}},
        "models": {"toy-bpe": {"toy": {"tokenizer": "bpe"}, "training": {"validation_problems": 1}}},
        "studies": {"mine": project.config["studies"]["first"] | {"models": ["toy-bpe"], "train_sets": ["mine"]}},
    }
    project.write("mine.yaml", text=yaml.safe_dump(own))
    project.write("files/mine.jsonl", text='{"q": "1 + 1?", "a": "2"}\n{"q": "1 + 2?", "a": "3"}\n')
    begun = ["--configfile", "mine.yaml", "--config", "data_root=files", "--"]
    assert project.snakemake("-n", *begun, "mine").returncode == 0
    assert not (project.results / ".calls").exists(), "a dry run begins nothing"
    monkeypatch.chdir(project.folder)
    training = jobs_of(study_of([project.path, Path("mine.yaml")], "mine", Path("files"))[1])[0]
    assert project.snakemake(*begun, *training.outputs).returncode == 0
    assert {path.stem for path in (project.results / ".calls").iterdir()} == {"mine"}, "a part of it begins it, too"
    assert project.snakemake(*begun, "mine").returncode == 0
    project.jobs("second")

    monkeypatch.chdir(project.folder.parent)  # from any folder, from the results alone
    assert main(["status", "--results", str(project.results)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("second: 5 jobs: 5 done\n"), "the last one first"
    assert "\nmine: 5 jobs: 5 done\n" in shown and "first" not in shown
    assert main(["unused", "--results", str(project.results), "--config", str(project.path)]) == 0
    assert "runs/toy-bpe/mine" in capsys.readouterr().out
    monkeypatch.chdir(project.folder)  # where config.yaml lies
    assert main(["unused"]) == 0
    out, err = capsys.readouterr()
    assert not out and err.count("config.yaml") == 1, "each file is named once"
    project.edit(lambda config: config["studies"].pop("second"))
    assert main(["status"]) == 0
    assert "second" not in capsys.readouterr().out
    (project.folder / "mine.yaml").unlink()
    assert main(["status", "mine"]) == 1
    assert "there is no study 'mine' in config.yaml" in capsys.readouterr().err


def test_a_path_of_no_study_is_told(project: StandInProject) -> None:
    asked = project.snakemake("-n", "results/runs/toy/sums/hard/seed7-00000000/manifest.json")
    assert asked.returncode == 1
    assert "results/runs/toy/sums/hard/seed7-00000000: no study of this configuration has it" in asked.stdout


# The shipped workflow


def test_demo_means_the_jobs_one_counts_by_hand(tmp_path: Path) -> None:
    listed = dry_run(tmp_path, "--quiet", "rules")
    # 3 modes x 3 seeds = 9 runs, and the base; each on 2 test sets and 1 choice set; 1 train set.
    assert counts(listed) == {
        "dataset": 1 + 2 + 1, "model": 1, "base": 1, "train": 9,
        "evaluate": 10 * 2, "choices": 10, "report_spec": 1, "report": 1, "all": 1,
    }  # fmt: skip
    assert "warning" not in listed.stdout.lower()


def test_jobs_take_the_place_of_the_shells_that_start_them(tmp_path: Path) -> None:
    """A shell that waits dies of a signal to all processes of a job, and with it the job, before softtok has saved."""
    listed = dry_run(tmp_path, "-p")
    commands = [line.strip() for line in listed.stdout.split("\n") if " --spec " in line]
    assert len(commands) == sum(counts(listed).values()) - 2, "all but the target and the file of the report's spec"
    assert all(command.startswith("Shell command: exec softtok ") for command in commands)


def test_the_rehearsal_means_the_jobs_one_counts_by_hand(tmp_path: Path) -> None:
    """Counted with data sets from the hub; local files make the same jobs."""
    words = ["--quiet", "rules", "--configfile", str(ROOT / "config.yaml"), str(ROOT / "workflow/rehearsal.yaml"), "--"]
    # Models and train sets pair as in the paper: 3 + 1 + 1 pairs x 3 modes x 2 seeds = 30 runs, and 3 bases; each on 3
    # test sets and 3 choice sets. 3 train sets are cut against 3 test sets whole, of which a few problems are tested.
    assert counts(dry_run(tmp_path, *words, "rehearsal")) == {
        "dataset": 3 + 3 + 3 + 3, "model": 3, "base": 3, "train": 30,
        "evaluate": 33 * 3, "choices": 33 * 3, "report_spec": 1, "report": 1, "rehearsal": 1,
    }  # fmt: skip
    # `make rehearsal` adds the ablations: 3 noise scales, 6 placements, 3 temperatures x 2 seeds, on 1 test set each.
    ablations = [f"rehearsal-{name}" for name in ("noise-scale", "noise-placement", "temperature")]
    assert counts(dry_run(tmp_path, *words, "rehearsal", *ablations)) == {
        "dataset": 12, "model": 3, "base": 3, "train": 30 + 24, "evaluate": 99 + 24, "choices": 99,
        "report_spec": 4, "report": 4, "rehearsal": 1, **dict.fromkeys(ablations, 1),
    }  # fmt: skip
    # 2 models x 1 mode x 1 seed, and 2 bases, on 1 test set and 1 choice set.
    assert counts(dry_run(tmp_path, *words, "rehearsal-small")) == {
        "dataset": 1 + 1 + 1 + 1, "model": 2, "base": 2, "train": 2,
        "evaluate": 4, "choices": 4, "report_spec": 1, "report": 1, "rehearsal-small": 1,
    }  # fmt: skip


def test_gsm8k_smoke_is_a_target_and_reads_local_files_when_told(tmp_path: Path) -> None:
    hub = dry_run(tmp_path, "-p", "--", "gsm8k-smoke")
    # The train set, the test set it is cut against, and the few problems that are tested.
    assert counts(hub) == {
        "dataset": 3,
        "model": 1,
        "base": 1,
        "train": 3,
        "evaluate": 4,
        "report_spec": 1,
        "report": 1,
        "gsm8k-smoke": 1,
    }
    assert "--data-root" not in hub.stdout
    (tmp_path / "files/gsm8k").mkdir(parents=True)
    for name in ("train", "test"):
        (tmp_path / f"files/gsm8k/{name}.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    files = dry_run(tmp_path, "-p", "--config", "data_root=files", "--", "gsm8k-smoke")
    assert counts(files) == counts(hub)
    assert files.stdout.count("--data-root files") == 3
    missing = dry_run(tmp_path, "-p", "--config", "data_root=.", "--", "gsm8k-smoke")
    assert missing.returncode == 1
    assert missing.stdout.strip().endswith("config: train_sets.gsm8k-few.file.path: no file 'gsm8k/train.jsonl' in .")


def test_lint_and_format_are_clean() -> None:
    linted = Project(ROOT).snakemake("--lint")
    assert linted.returncode == 0, linted.stdout
    assert "Lints for" not in linted.stdout
    formatted = subprocess.run(
        [str(BIN / "snakefmt"), "--check", "Snakefile", "workflow"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert formatted.returncode == 0, formatted.stderr


def test_every_caption_is_there() -> None:
    captions = re.findall(r'caption="(.*?)"', (ROOT / "workflow/rules/report.smk").read_text())
    assert len(captions) == 5
    assert all((ROOT / "workflow/rules" / caption).is_file() for caption in captions)


def test_parsing_imports_nothing_heavy() -> None:
    code = "import sys, softtok.config.grid; print(*sys.modules)"
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert "pydantic" in listed.stdout.split()
    assert not {"torch", "pandas", "transformers", "datasets", "sympy", "pyarrow"} & set(listed.stdout.split())


@pytest.mark.parametrize("name", ["default", "slurm", "kubernetes"])
def test_profiles_agree_on_what_reruns_and_give_a_reason_for_every_line(name: str) -> None:
    text = (ROOT / "profiles" / name / "profile.yaml").read_text()
    assert yaml.safe_load(text)["rerun-triggers"] == ["mtime", "params", "input"]
    for line in text.split("\n"):
        assert not line or line.endswith(":") or "#" in line, line


def test_a_study_of_a_thousand_runs_is_expanded_and_its_report_reads_the_spec_from_a_file(tmp_path: Path) -> None:
    """Some 375 runs were once the most: a command line holds no more.

    The dry run takes some 5 s of a CPU.
    """
    project = StandInProject.create(tmp_path / "project", yaml.safe_load(TINY), **ENVIRONMENT)
    project.edit(lambda config: config["studies"]["second"].update(seeds=list(range(500))))
    listed = project.snakemake("-n", "--quiet", "rules", "--", "second")
    assert counts(listed) == {
        "dataset": 2, "model": 1, "base": 1, "train": 1000, "evaluate": 1001,
        "report_spec": 1, "report": 1, "second": 1,
    }  # fmt: skip
    study = project.grid().studies["second"]
    assert len(study.json) > 500_000, "far more than one word of a command line holds"
    project.build("--", study.spec_path)
    assert parse(ReportSpec, str(project.folder / study.spec_path)) == study.spec


def test_with_few_cores_a_run_is_evaluated_before_the_next_and_a_seed_ends_before_the_next(
    project: StandInProject,
) -> None:
    """A study that is stopped has whole runs, and as many modes as it can have of each seed."""
    study = {"training_modes": ["soft", "hard"], "seeds": [1, 0], "test_sets": ["sums", "long-sums"]}
    project.edit(lambda config: config["studies"]["first"].update(study))
    project.edit(lambda config: config["models"].update(other={"like": "toy", "prompt": "{question}\n"}))
    project.edit(lambda config: config["studies"]["first"].update(models=["toy", "other"]))
    project.build("--cores", "1")
    calls = [call.split() for call in (project.folder / "calls.txt").read_text().splitlines()]
    costly = [out for command, out in calls if command in ("train", "evaluate", "choices")]
    runs = [re.sub(r"results/runs/|-[0-9a-f]{8}.*", "", out) for out in costly]
    assert runs == sorted(runs, key=runs.index), "the jobs of a run stand together"
    trained = [run for run in dict.fromkeys(runs) if "/base/" not in run]
    modes = [(model, mode) for model in ("toy", "other") for mode in ("soft", "hard")]
    assert trained == [f"{model}/sums/{mode}/seed{seed}" for seed in (0, 1) for model, mode in modes]
    assert {runs.count(run) for run in trained} == {4}, "a training, two test sets, a choice set"
