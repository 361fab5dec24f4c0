"""Writes a study's report: metrics.csv, claims.csv, tables, figures and one self-contained report.html.

Nothing here loads a model or imports PyTorch. Modules that read and draw are imported when a report is made.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from softtok.config.specs import ReportSpec, ToySource
from softtok.report import palette
from softtok.report.costs import shown
from softtok.report.palette import DIVERGED_MARK
from softtok.storage.files import write_text
from softtok.storage.progress import duration

if TYPE_CHECKING:
    from softtok.report.claim_lines import ClaimLine
    from softtok.report.claims import Verdict
    from softtok.report.collect import Absent, Results, Run
    from softtok.report.panels import Plot
    from softtok.report.questions import Question
    from softtok.report.study import Study
    from softtok.report.tables import Table
    from softtok.report.viewer import Viewer

PARTIAL = "partial"  # the folder of a report before its study has finished, in that of the whole report
SECTIONS = {
    "own": "Figures of this study's own",
    "modes": "All inference modes",
    "out-of-domain": "Out of domain",
    "majority-voting": "Majority voting",
    "answers-given": "How answers ended",
    "other": "Other tables",
    "training": "Training",
    "entropy": "Entropy",
}
INTROS = {"out-of-domain": "Multiple choice on what was not trained: how much of the base model was left as it was."}
SCRIPTS = ("page.js", "viewer.js")
UNFOLDED = ("own", "out-of-domain")
TABLE_ENDS, FIGURE_ENDS = ("csv", "tex", "md"), ("svg", "png", "pdf")  # of the files beside the page
HIDDEN_PROVENANCE = ("host",)  # the name of a machine does not matter to a result
TOY_NOTE = (
    "This study trains a toy: a very small model, made in the workflow. It shows that every part works together, and "
    "how a full study would look. It is no evidence for or against the paper's claims."
)


def make_report(
    spec: ReportSpec, out: Path, root: Path, why: Callable[[Absent], str] | None = None, damaged: bool = False
) -> list[str]:
    """Writes a report to `out`; the run paths of the spec are relative to `root`. Returns what is missing, in lines.

    Equal results give equal bytes. Everything is read before anything is written. So a missing or malformed file of a
    run, which is a UserError that names it, leaves an older report as it was. (Snakemake, though, removes the outputs
    of a job that failed.) Older tables and figures that this report does not have are removed. With `why`, which says
    why something is missing, what is missing is no error; the report names it and says that it is partial. With
    `damaged`, neither is what cannot be read. A whole report removes the partial one that was made before it.
    """
    from softtok.report import claims, collect, figures, own_figures
    from softtok.report.claim_controls import controlled
    from softtok.report.differences import with_differences
    from softtok.report.missing import marked_partial, missing_lines
    from softtok.report.run_files import MissingError
    from softtok.report.study import Study
    from softtok.report.tables import make_tables
    from softtok.report.viewer import make_viewer

    own_figures.check_figures(spec.figures)
    study = Study(spec)
    absent: list[Absent] | None = None if why is None else []
    results = collect.collect(study, root, absent)
    wrong = [item.error for item in absent or () if not isinstance(item.error, MissingError)]
    if wrong and not damaged:
        raise wrong[0]
    missing = missing_lines(absent, why) if absent and why else []
    tables = make_tables(study, results.metrics, [run.row for run in results.runs if run.manifest.diverged])
    tables = with_differences(tables, study, results.metrics)
    if missing:
        tables = marked_partial(tables, study)
    verdicts = claims.verdicts(study, results.metrics)
    own = list(own_figures.draw_own(spec.figures, results.metrics, results.training))
    controls, viewer = controlled(study, results.metrics), make_viewer(study, root)
    collect.write_metrics(results.metrics, out / "metrics.csv")
    write_text(out / "claims.csv", claims.to_csv(verdicts))
    made = _write_tables(tables, spec.study, out / "tables")
    drawn = chain(own, figures.draw_all(study, results.metrics, results.training))  # one in memory at a time
    plots = _write_plots(drawn, out / "figures")
    made |= {f"{plot['name']}.{end}" for plot in plots for end in FIGURE_ENDS}
    for path in [*out.glob("tables/*"), *out.glob("figures/*")]:
        if path.name not in made:
            path.unlink()
    content = Content(study, results, tables, plots, verdicts, controls, missing, viewer)
    write_text(out / "report.html", _page(content))
    if not missing and (out / PARTIAL / "report.html").exists():
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return missing


@dataclass(frozen=True)
class Content:
    """What a page is made of."""

    study: Study
    results: Results
    tables: Mapping[str, Table]
    plots: list[dict[str, str]]
    verdicts: list[Verdict]
    controls: Mapping[str, list[Verdict]]
    missing: Sequence[str]
    viewer: Viewer | None


def _write_plots(drawn: Iterable[Plot], folder: Path) -> list[dict[str, str]]:
    """Writes each figure in each format; returns what the page shows of them."""
    from softtok.report.figures import save

    shown = []
    for plot in drawn:
        svg = palette.inline_svg(save(plot, folder), plot.name)
        words = {"name": plot.name, "section": plot.section, "title": plot.title, "caption": plot.caption}
        shown.append({**words, "svg": svg})
    return shown


def _write_tables(tables: Mapping[str, Table], study: str, folder: Path) -> set[str]:
    """Writes each table in each format, and the headline for a terminal; returns the names of the files."""
    from softtok.report.latex import FORMATS
    from softtok.report.terminal import HEADLINE, headline

    texts = {f"{table.name}.{end}": render(table) for table in tables.values() for end, render in FORMATS.items()}
    if "hard-inference" in tables:
        texts[HEADLINE] = headline(study, tables["hard-inference"])
    for name, text in texts.items():
        write_text(folder / name, text)
    return set(texts)


def _page(content: Content) -> str:
    """Returns report.html as text."""
    from softtok.report.claims import by_claim

    study, results, missing = content.study, content.results, content.missing
    template = _templates().get_template("report.html")
    of_tests = results.metrics[results.metrics["test_set"].isin(study.test_sets)]
    problems = of_tests.groupby("test_set")["n_problems"].first().to_dict()
    looks = palette.looks(row.training_mode for row in study.rows)
    notes_of, tables_of = notes(results), _by_section(content.tables)
    return template.render(
        name=study.spec.study,
        title=study.spec.title,
        themes=palette.themes(),
        dots={mode: look.dot for mode, look in looks.items()},
        facts=_facts(study, results, sum(problems.values())),
        notes=notes_of,
        missing=missing,
        finished=f"{len(results.runs)} of {len(study.runs)} runs are here",
        claim_lines=_claim_lines(content, looks),
        tables=content.tables,
        tables_of=tables_of,
        table_ends=TABLE_ENDS,
        problem_noise=[(name, problems[name], points) for name, points in results.problem_noise.items() if points],
        plots=content.plots,
        figure_ends=FIGURE_ENDS,
        claims=by_claim(content.verdicts),
        controls=content.controls,
        toy=("note", TOY_NOTE) in notes_of,
        sections=_sections(tables_of, content.plots),
        intros=INTROS,
        unfolded=UNFOLDED,
        runs=[_run_line(run) for run in results.runs],
        costs=shown(results.costs, study.rows),
        several_models=len({row.model for row in study.rows}) > 1,
        provenance=provenance(results.runs),
        config=yaml.safe_dump(study.spec.config, sort_keys=False, allow_unicode=True, width=100),
        scripts=[(Path(__file__).parent / name).read_text(encoding="utf-8") for name in SCRIPTS],
        questions=_questions(content),
        shared_colours=palette.shared_colours(row.training_mode for row in study.rows),
        viewer=content.viewer,
    )


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _claim_lines(content: Content, looks: Mapping[str, palette.Look]) -> list[ClaimLine]:
    """Returns the lines of the first screen."""
    from softtok.report.claim_controls import remark
    from softtok.report.claim_lines import claim_lines

    remarks = {name: remark(tests) for name, tests in content.controls.items()}
    names = {paper: own for own, paper in content.study.paper.get("training_modes", {}).items()}
    return claim_lines(content.verdicts, remarks, looks, names)


def _questions(content: Content) -> list[Question]:
    """Returns the controls by question, in a study with hard inference."""
    from softtok.report.questions import questions

    headline = content.tables.get("hard-inference")
    return questions(content.study, headline, content.results.metrics) if headline else []


def _by_section(tables: Mapping[str, Table]) -> dict[str, list[Table]]:
    """Returns the tables of each section of `SECTIONS`; the headline stands at the top of the page."""
    found: dict[str, list[Table]] = {section: [] for section in SECTIONS}
    for name, table in tables.items():
        if name != "hard-inference":
            start = {"inference-modes": "modes", "answers": "answers-given"}
            section = next((of for begins, of in start.items() if name.startswith(f"{begins}-")), name)
            found[section if section in SECTIONS else "other"].append(table)
    return found


def _sections(tables_of: Mapping[str, list[Table]], plots: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Returns the sections that have something to show, with their headings."""
    drawn = {plot["section"] for plot in plots}
    return {section: heading for section, heading in SECTIONS.items() if tables_of[section] or section in drawn}


def _facts(study: Study, results: Results, problems: int) -> list[tuple[str, str]]:
    """Returns the study's size in a few numbers, and when it was run: (number, what it counts)."""
    when = _when(results.runs)
    trained = [run for run in results.runs if run.row.training_mode != "base"]
    seeds = len({run.seed for run in trained})
    return [
        (f"{len(trained)}", f"training run{'s' * (len(trained) != 1)}"),
        (f"{seeds}", f"seed{'s' * (seeds != 1)}"),
        (f"{len(study.inference_modes)}", "inference modes"),
        (f"{problems:,}", "test problems"),
        (f"{results.answers:,}", "answers graded"),
        (duration(sum(run.manifest.wall_s for run in results.runs)), "training time"),
        *[(when, "runs begun")] * bool(when),
    ]


def _when(runs: Sequence[Run]) -> str:
    """Returns the days on which the first and the last training began; empty if no run says it."""
    begun = sorted(
        datetime.fromisoformat(str(event["time"]))
        for run in runs
        for event in run.manifest.attempts
        if event["event"] == "start" and "time" in event
    )
    days = dict.fromkeys(f"{day.day} {day:%b %Y}" for day in (*begun[:1], *begun[-1:]))
    return " to ".join(days)


def notes(results: Results) -> list[tuple[str, str]]:
    """Returns what a reader must know before the numbers: (kind, sentences), kind "note" or "warning"."""
    found, runs = [], results.runs
    if any(isinstance(run.manifest.spec.model.source, ToySource) for run in runs):
        found.append(("note", TOY_NOTE))
    lost = {str(run): run.manifest.diverged for run in runs if run.manifest.diverged}
    if lost:
        listed = "; ".join(f"{run} at step {what.step} ({what.reason})" for run, what in lost.items())
        found.append(("warning", f"Diverged, counted in all means, rows marked {DIVERGED_MARK}: {listed}."))
    if mixed := mixture(runs):
        found.append(("warning", mixed))
    if results.overlaps:
        shares = "; ".join(
            f"{one.shared:,} of {one.problems:,} of {one.test_set} in {one.train_set}" for one in results.overlaps
        )
        found.append(("warning", f"Questions of test sets stand in train sets as well: {shares} (see `exclude:`)."))
    if results.flagged:
        shares = "; ".join(f"{data_set}: {share}" for data_set, share in results.flagged.items())
        what = f"Many problems were flagged when they were prepared: {shares}"
        found.append(("warning", f"{what}. `softtok preview` shows what the reward makes of their golds."))
    if len(results.made_on) > 1:
        places = "; ".join(f"{name}: {count}" for name, count in results.made_on.most_common())
        what = f"Evaluations and choice sets were made on different devices or in different precisions ({places} files)"
        found.append(("warning", f"{what}. Differences between their results may come from that."))
    if results.unjudged:
        what = f"The reward gave up on {results.unjudged:,} of {results.answers:,} answers (timeout or error)"
        found.append(("warning", f"{what}. They count as not solved."))
    if gave_up := _unjudged_in_training(results):
        found.append(("warning", gave_up))
    if differing := _disagreements(results):
        found.append(("note", differing))
    return found


def _disagreements(results: Results) -> str:
    """Returns how often `math` and `math-strict` differ, by test set; an empty text if they never do."""
    listed = "; ".join(
        f"{name}: {seen['own'] + seen['other']:,} of {seen['answers']:,} answers ({seen['own']:,} accepted by the set's"
        f" reward alone, {seen['other']:,} by the other alone)"
        for name, seen in results.disagreements.items()
        if seen["own"] + seen["other"]
    )
    return (
        f"The rewards math and math-strict differ. {listed}. The numbers here are of the set's reward."
        if listed
        else ""
    )


def _unjudged_in_training(results: Results) -> str:
    """Returns a warning if answers of training have no verdict; else an empty text."""
    shares = results.training["unjudged"].dropna() if len(results.training) else results.training
    if not len(shares) or not shares.any():
        return ""
    what = f"The reward gave up on {shares.mean():.3g} % of the answers in training (timeout or error)"
    return f"{what}, and on up to {shares.max():.3g} % in a step. They have no part in the gradient or its baseline."


def mixture(runs: Sequence[Run]) -> str:
    """Returns a warning if commits, devices or library versions of the runs differ; else an empty text."""
    mixed = [
        f"{key} ({', '.join(f'{value} in {count} of {len(runs)} runs' for value, count in values)})"
        for key, values in provenance(runs)
        if len(values) > 1
    ]
    what = "; ".join(mixed)
    return f"The runs differ in {what}. Differences between their results may come from that." if mixed else ""


def provenance(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Returns the provenance of the runs: (key, [(value, runs with it)]), the most frequent value first."""
    found: dict[str, Counter[str]] = {}
    for run in runs:
        for key, value in run.manifest.provenance.items():
            if key not in HIDDEN_PROVENANCE:
                found.setdefault(key, Counter())[str(value)] += 1
    return [(key, counter.most_common()) for key, counter in found.items()]


def _run_line(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    trained = run.row.training_mode != "base"
    starts = sum(event["event"] == "start" for event in manifest.attempts)
    best = manifest.best_validation
    return {
        "row": run.row,
        "seed": run.seed if trained else "–",
        "steps": manifest.steps if trained else "–",
        "best_step": manifest.best_step if trained else "–",
        "best": f"{best:.1f}" if trained and best is not None else "–",
        "time": duration(manifest.wall_s) if trained else "–",
        "seconds": manifest.wall_s if trained else "",
        "attempts": starts if trained else "–",
        "diverged": manifest.diverged,
    }
