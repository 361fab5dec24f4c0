"""What a study costs before it is run: near what recorded studies cost, and from the best source that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from softtok.config.counted import Counting, problems_of
from softtok.config.model_sizes import parameters, read_size, size_of
from softtok.config.rates import DEVICES, DOCTOR, Rates
from softtok.config.settings import RuntimeSettings
from softtok.config.work import Costs, Job, ProblemsCost, jobs_of, training_counts
from softtok.errors import UserError
from softtok.report.forecast import Forecast
from softtok.storage.files import write_json, write_text
from tests.support.project import Project, shipped

# Recorded on a shared machine of two cores (AMD EPYC with AVX-512). Seconds of one core.
DEMO_QUIET = {"train": 2 * 300.0, "tests": 2 * 180.0}  # of all jobs: minutes of training and tests, on both cores
DEMO_BUSY = {"train": 3 * (76 + 85 + 97.0), "tests": 10 * (34 + 22 + 3.0)}  # `softtok measure`, while others computed
SMOLLM2_STEP = 10.8 + 16.0  # rollout and update of a hard step, one thread, beside another such job
SMOLLM2_TESTS = {"svamp-100": 862.0, "hellaswag-100": 180.0}  # evaluations of the untouched model
SMOLLM2_JOBS = {"train": 1447.0, "svamp-100": 594.0, "gsm8k-50": 249.0, "hellaswag-100": 105.0}  # two threads
# `softtok doctor` there.
PROBED = Rates(
    device="cpu (AMD EPYC)",
    gpu=False,
    large=1.02e11,
    decode=0.7 * 7.63e10,
    memory=8.92e9,
    layer_s=3.66e-4,
    written=2.06e8,
    start_s=4.0,
    measured=True,
)
WITHIN = 1.5


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("forecast"))
    made.config = shipped()
    return made


def forecast(project: Project, study: str, device: str | None = None, cot_tokens: float | None = None) -> Forecast:
    grid = project.grid()
    return Forecast(grid, grid.studies[study], project.results, device, cot_tokens)


def near(estimate: float, real: float) -> bool:
    return real / WITHIN <= estimate <= real * WITHIN


@pytest.mark.parametrize("rates", [DEVICES["cpu"], PROBED], ids=["table", "probes"])
def test_the_demo_costs_what_was_recorded(project: Project, rates: Rates) -> None:
    grid = project.grid()
    jobs = jobs_of(grid.studies["demo"])
    costs = Counting(jobs, rates, grid.runtimes, project.results).costs()
    found = {"train": 0.0, "tests": 0.0}
    for job in jobs:
        seconds = costs.seconds(job, grid.runtimes["toy"], problems_of(job.data, project.results))
        found["train" if job.of is None else "tests"] += seconds
    quiet, busy = sum(DEMO_QUIET.values()), sum(DEMO_BUSY.values())
    assert near(sum(found.values()), quiet) and near(sum(found.values()), busy), found
    assert all(near(found[kind], DEMO_BUSY[kind]) for kind in found), found


@pytest.mark.parametrize("rates", [DEVICES["cpu"], PROBED], ids=["table", "probes"])
def test_the_pretrained_model_costs_what_was_recorded(project: Project, rates: Rates) -> None:
    grid = project.grid()
    jobs = jobs_of(grid.studies["smollm2"])
    runtime = grid.runtimes["smollm2"].model_copy(update={"threads": 1})
    costs = Counting(jobs, rates, {"smollm2": runtime}, project.results).costs()
    hard = next(job for job in jobs if job.of is None and job.run.name == "hard")
    assert near(costs.trainings[hard.cost].step_s, SMOLLM2_STEP), costs.trainings[hard.cost]
    for name, real in SMOLLM2_TESTS.items():
        job = next(job for job in jobs if job.of is not None and job.data.name == name)
        assert near(costs.seconds(job, runtime, 100), real), (name, costs.seconds(job, runtime, 100))


def test_whole_jobs_of_the_pretrained_model_cost_what_was_recorded(project: Project) -> None:
    found = {}
    for kind in forecast(project, "smollm2", "cpu").kinds:
        if kind.job.of is not None or kind.job.run.name == "hard":
            found["train" if kind.job.of is None else kind.job.data.name] = kind.seconds
    assert set(found) == set(SMOLLM2_JOBS)
    assert all(near(found[name], real) for name, real in SMOLLM2_JOBS.items()), found


def test_finished_jobs_count_more_than_what_was_measured_and_that_more_than_probes(
    project: Project, tmp_path: Path
) -> None:
    made = project.copy(tmp_path / "made")
    kinds = {kind.job.cost: kind for kind in forecast(made, "demo").kinds}
    assert {kind.source for kind in kinds.values()} == {"counted"}
    write_json(made.results / DOCTOR, {**PROBED.model_dump(), "large": 1e9, "decode": 1e9})
    probed = {kind.job.cost: kind for kind in forecast(made, "demo").kinds}
    assert {kind.source for kind in probed.values()} == {"probes"}
    training = next(kind.job for kind in kinds.values() if kind.job.of is None)
    assert probed[training.cost].seconds > 5 * kinds[training.cost].seconds
    test = next(kind.job for kind in kinds.values() if kind.job.of is not None)
    measures = {test.cost: ProblemsCost(ready_s=1.0, problem_s=0.25)}
    write_text(made.results / "logs/costs-demo.json", Costs(start_s=2.0, trainings={}, measures=measures).as_json())
    same = [job for job in jobs_of(made.grid().studies["demo"]) if job.cost == training.cost]
    for job, seconds in zip(same, (100.0, 140.0), strict=False):
        finish(made, job, seconds)
    found = {kind.job.cost: (kind.source, kind.seconds, kind.spread) for kind in forecast(made, "demo").kinds}
    assert found[training.cost] == ("finished", 120.0, 1.0), "the mean of those that have finished"
    assert found[test.cost] == ("measured", 2.0 + 1.0 + 100 * 0.25, 1.0)
    assert {source for source, *_ in found.values()} == {"finished", "measured", "probes"}
    other = forecast(made, "demo", device="A100")
    assert {kind.source for kind in other.kinds} == {"counted"}, "what was timed here says nothing of another device"
    assert other.rates == DEVICES["A100"]


def finish(project: Project, job: Job, seconds: float) -> None:
    project.write(*job.outputs, text="{}")
    project.write(job.benchmark, text=f"s\th:m:s\n{seconds}\t0\n")


def test_totals_are_sums_over_all_jobs(project: Project) -> None:
    told = forecast(project, "paper", device="H100")
    assert sum(kind.count for kind in told.kinds) == len(jobs_of(told.study))
    held = sum(kind.seconds * kind.count for kind in told.kinds) / 3600
    assert told.gpu_hours() == pytest.approx(held), "each job has one GPU"
    assert told.gpu_hours(longest=True) == pytest.approx(held * DEVICES["H100"].spread)
    stays, beside = told.disk_bytes()
    assert 0.9 * 380e9 < stays - 28e9 < 1.1 * 380e9, "the checkpoints alone: see README.md"
    assert beside == pytest.approx(193e9, rel=0.02), "two saved states of the 8B model"
    steps = sum(job.run.spec.training.steps * 64 for job in told.jobs if job.of is None and job.run.spec.training)
    assert forecast(project, "paper", "H100", cot_tokens=90).tokens() > steps * 100
    assert forecast(project, "demo").gpu_hours() == 0 < forecast(project, "demo").core_hours()


def test_longer_thoughts_cost_more_up_to_their_cap(project: Project) -> None:
    hours = [forecast(project, "paper", "H100", tokens).gpu_hours() for tokens in (20, 100, 400, 512, 5000)]
    assert hours == sorted(hours) and hours[0] < 0.5 * hours[2]
    assert hours[-1] == hours[-2], "none is longer than its cap"


def test_faster_devices_take_less(project: Project) -> None:
    hours = [forecast(project, "paper", name).gpu_hours() for name in ("H200", "H100", "A100", "4090")]
    assert hours == sorted(hours)
    with pytest.raises(UserError, match=r"--device B300: is not in the table; choose one of H100, H200,"):
        forecast(project, "paper", "B300")


def test_jobs_that_may_exceed_their_time_are_named(project: Project, tmp_path: Path) -> None:
    assert list(forecast(project, "demo").too_long()) == []
    made = project.copy(tmp_path / "short")
    limit = 1  # minutes
    made.edit(lambda config: config["models"]["toy"]["runtime"].update(runtime_min=limit))
    told = forecast(made, "demo")
    (line,) = told.too_long()
    surely = [kind for kind in told.kinds if kind.seconds > 60 * limit]
    over = [kind for kind in told.kinds if kind.seconds * kind.spread > 60 * limit]
    assert {kind.job.kind for kind in surely} == {"train"} and sum(kind.count for kind in surely) == 9
    assert line.startswith(
        f"! {sum(kind.count for kind in over)} jobs of toy may exceed runtime_min: 1 (9 are expected"
    )
    marked = [row for row in told.lines() if " !" in row]
    assert len(marked) == len(over)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("study", "device"), [("paper", "H200"), ("demo", None), ("smollm2", "cpu")])
def test_the_screen_fits_and_says_what_it_assumes(project: Project, study: str, device: str | None, width: int) -> None:
    told = forecast(project, study, device)
    lines = told.lines(width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for line in told.counting.assumptions():
        assert line in text
    assert ("nothing was timed on a GPU yet" in text) == (study == "paper")
    assert ("GPU-hours" in text) == (study == "paper") and "tokens: " in text and "disk: " in text


def test_the_number_of_problems_is_known_before_anything_is_downloaded(project: Project, tmp_path: Path) -> None:
    grid = project.grid()
    sets = {job.data.name: job.data for job in forecast(project, "paper").jobs if job.of is not None}
    found = {name: problems_of(data, project.results) for name, data in sets.items()}
    assert found == {
        "gsm8k": 1319,
        "math500": 500,
        "olympiadbench": 675,
        "hellaswag": 10042,
        "arc": 1172,
        "mmlu": 14042,
    }
    few = {job.data.name: job.data for job in jobs_of(grid.studies["smollm2"]) if job.of is not None}
    assert problems_of(few["gsm8k-50"], project.results) == 50
    made = tmp_path / "results"
    write_json(made.parent / f"{sets['arc'].stem}.json", {"rows": 7})
    assert problems_of(sets["arc"], made) == 7


def test_models_have_the_parameters_that_they_are_known_for(project: Project, tmp_path: Path) -> None:
    grid = project.grid()
    known = {"llama-3.2-3b": 3.21e9, "llama-3.1-8b": 8.03e9, "qwen-2.5-3b": 3.09e9, "smollm2": 134.5e6}
    models = {model.name: model for model in grid.models.values()}
    for name, count in known.items():
        assert parameters(size_of(models[name], tmp_path)) == pytest.approx(count, rel=0.01)
    config = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    write_json(tmp_path / "config.json", {**config, "vocab_size": 10, "tie_word_embeddings": True})
    size = read_size(tmp_path / "config.json")
    assert (size.key_heads, size.vocabulary, size.tied) == (4, 10, True)
    write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError, match=r"config\.json does not say the model's shape \(KeyError"):
        read_size(tmp_path / "config.json")


def test_threads_share_the_work_of_a_cpu_and_not_that_of_a_gpu() -> None:
    cpu = DEVICES["cpu"]
    assert cpu.large < cpu.of_threads(2).large < 2 * cpu.large
    assert DEVICES["H100"].of_threads(16) == DEVICES["H100"]
    assert RuntimeSettings().threads == 1 and cpu.of_threads(1) == cpu


def test_a_training_is_counted_from_its_steps(project: Project) -> None:
    told = forecast(project, "paper", "H100")
    kind = next(kind for kind in told.kinds if kind.job.of is None)
    settings, costs = kind.job.run.spec.training, told.counting.costs()
    assert settings is not None
    counts = training_counts(settings, kind.runtime.save_every)
    cost = costs.trainings[kind.job.cost]
    assert counts.steps * cost.step_s < kind.seconds < 2 * counts.steps * cost.step_s
