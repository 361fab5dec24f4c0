"""The report in a real browser: sorting, filtering, looking closely, the viewer, the keyboard, and accessibility."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from softtok.report.page import make_report
from tests.support.browser import CHROMIUM, MISSING, act
from tests.support.report_specs import report_spec
from tests.support.synthetic_runs import write_study
from tests.support.thoughts import write_questions, write_thoughts

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
AXE = os.environ.get("SOFTTOK_AXE")  # axe.min.js of the npm package axe-core
MOST_MB = 10


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a report in `out`, and the sketch of its study."""
    root = tmp_path_factory.mktemp("study")
    sketch = write_study(root, models=("a", "b"), modes=("hard", "soft"), seeds=2, problems=12, steps=4, cot=12)
    write_questions(root, sketch, 12)
    write_thoughts(root, sketch, problems=2)
    make_report(report_spec(sketch), root / "out", root)
    return root, sketch


@pytest.fixture(scope="module")
def page(study: tuple[Path, dict[str, Any]]) -> Path:
    path = study[0] / "out/report.html"
    assert path.stat().st_size < MOST_MB * 1e6
    return path


def test_tables_are_sorted_and_put_back(page: Path, tmp_path: Path) -> None:
    told = act(
        page,
        """
        const number = (row) => parseFloat(row.querySelectorAll("tr.main td.mean")[4].textContent);
        const column = () => all("#headline tbody.row").map(number);
        const button = all("#headline thead tr:last-child button")[6];
        const found = [column()];
        for (let time = 0; time < 3; time++) { button.click(); found.push(column(), button.closest("th").ariaSort); }
        const kept = all("#headline tbody.row").every((row) => row.querySelector("tr.main"));
        return { found, kept };
        """,
        tmp_path,
    )
    assert min(told["found"][0]) < 10 <= max(told["found"][0]), (
        "of one digit and of two: texts would be sorted otherwise"
    )
    before, down, says_down, up, says_up, after, says_nothing = told["found"]
    assert down == sorted(before, reverse=True) and up == sorted(before) and after == before != down
    assert (says_down, says_up, says_nothing) == ("descending", "ascending", None)


def test_a_filter_holds_for_all_tables_and_keeps_the_base(page: Path, tmp_path: Path) -> None:
    told = act(
        page,
        """
        await choose("model", "a");
        await choose("mode", "soft");
        const visible = all("tbody.row").filter((row) => !row.hidden);
        const minus = one('input[name="minus-hard"]');
        const before = all("#headline tr.minus-hard").filter((row) => !row.hidden).length;
        minus.click();
        return {
          seen: [...new Set(visible.map((row) => `${row.dataset.model} ${row.dataset.mode}`))],
          tables: new Set(visible.map((row) => row.closest("table"))).size,
          minus: [before, all("tr.minus-hard").filter((row) => !row.hidden).length],
        };
        """,
        tmp_path,
    )
    assert set(told["seen"]) == {"a base", "a soft"}
    assert told["tables"] >= 6 and told["minus"] == [2, 0]


def test_a_number_tells_its_seeds_and_the_keyboard_goes_from_one_to_the_next(
    page: Path, study: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    told = act(
        page,
        """
        one('#headline tbody[data-mode="soft"] td.mean').dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
        const hovered = one("#tip").textContent;
        all("#headline td.mean[tabindex='0']")[0].focus();
        const found = [one("#tip").textContent];
        for (const name of ["ArrowDown", "ArrowRight"]) { key(name); found.push(one("#tip").textContent); }
        const inside = document.activeElement.matches("td.mean");
        key("Escape");
        return { hovered, found, inside, closed: one("#tip").hidden };
        """,
        tmp_path,
    )
    metrics = pd.read_csv(study[0] / "out/metrics.csv")
    cell = (metrics["model"] == "a") & (metrics["training_mode"] == "soft") & (metrics["test_set"] == "sums")
    values = metrics[cell & (metrics["inference_mode"] == "hard-greedy") & (metrics["metric"] == "pass@k")]["value"]
    assert told["hovered"].startswith(f"seeds 0, 1: {', '.join(f'{value:.2f}' for value in values)}\n95 % interval")
    assert told["found"][0].startswith("one run: ") and len(set(told["found"])) == 3
    assert told["inside"] and told["closed"]


def test_folds_open_for_links_and_all_at_once(page: Path, tmp_path: Path) -> None:
    told = act(
        page,
        """
        const closed = all("details.fold").filter((fold) => !fold.open).length;
        one('nav a[href="#claims"]').click();
        await sleep(300);
        const linked = one("#claims details").open;
        all(".tools button").find((button) => button.textContent.startsWith("unfold")).click();
        const columns = all("table.results").map((table) => table.querySelector("th.name"));
        const sticky = columns.every((head) => getComputedStyle(head).position === "sticky");
        const wide = document.documentElement.scrollWidth <= innerWidth;
        return { closed, linked, left: all("details.fold").filter((fold) => !fold.open).length, sticky, wide };
        """,
        tmp_path,
        width=390,
    )
    assert told["closed"] > 5 and told["linked"] and told["left"] == 0
    assert told["sticky"], "the names of lines stay in sight"
    assert told["wide"], "the page itself does not scroll sideways"


def test_samples_and_thoughts_can_be_looked_at(page: Path, study: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, sketch = study
    run = next(run for run in sketch["runs"] if run["mode"] == "soft")
    told = act(
        page,
        """
        await sleep(500);
        const problems = () => all('select[name="viewer-problem"] option').length;
        const runs = all('select[name="viewer-run"] option');
        const run = runs.find((option) => option.textContent.startsWith("soft, seed 0, a"));
        await choose("viewer-run", run.value);
        await choose("viewer-mode", "soft-sample");
        await choose("viewer-problem", "0");
        const steps = all("#viewer li:first-of-type .step");
        steps[0].focus();
        const first = one("#tip").textContent;
        key("ArrowRight");
        const second = one("#tip").textContent;
        const found = {
          question: one("#viewer .question").textContent, gold: one("#viewer .gold").textContent,
          cot: steps.map((step) => step.textContent).join(""), samples: all("#viewer li").length, first, second,
          shaded: steps.every((step) => step.style.background.includes("color-mix")),
        };
        found.all = problems();
        const hint = () => one("#viewer .caption code")?.textContent ?? null;
        found.hints = [hint()];
        await choose("viewer-problem", "5");
        found.hints.push(hint());
        await choose("viewer-mode", "hard-sample");
        found.hints.push(hint());
        await choose("viewer-mode", "soft-sample");
        await choose("viewer-problem", "0");
        const box = (name) => one(`input[name="viewer-${name}"]`);
        for (const name of ["wrong", "unboxed", "cut off", "refused", "gave up"]) box(name).click();
        found.right = all("#viewer li .head").every((head) => head.textContent.startsWith("✓"));
        for (const name of ["wrong", "unboxed", "cut off", "refused", "gave up"]) box(name).click();
        await choose("viewer-mode", "hard-greedy");
        await choose("viewer-problems", "+hard");
        const id = (option) => option.textContent.match(/sums-[0-9]+/)[0];
        found.contrast = all('select[name="viewer-problem"] option').map(id);
        await choose("viewer-problems", "all");
        const search = one('input[name="viewer-search"]');
        search.value = "What is 7 +";
        search.dispatchEvent(new Event("input", { bubbles: true }));
        found.searched = problems();
        return found;
        """,
        tmp_path,
    )
    rows = pd.read_parquet(root / run["path"] / "eval/sums/six-89ab4567.parquet")
    shown = rows[(rows["problem_id"] == "sums-00000") & (rows["inference_mode"] == "soft-sample")]
    assert (told["question"], told["gold"]) == ("What is 0 + 1?", "Gold: 1 (sums-00000)")
    assert told["cot"] == shown["cot"].iloc[0] and told["samples"] == len(shown) == 32 and told["shaded"]
    thoughts = pd.read_parquet(root / run["path"] / "eval/sums/six-89ab4567.thoughts.parquet")
    step = thoughts[(thoughts["problem_id"] == "sums-00000") & (thoughts["inference_mode"] == "soft-sample")].iloc[0]
    assert f"entropy {step['entropy']:.2f} nats" in told["first"] and "moved by noise: 0.33" in told["first"]
    assert all(f"{100 * round(weight, 3):.1f} %" in told["first"] for weight in step["weights"])
    assert told["first"].count(" %") == 5 and told["second"] != told["first"]
    recorded, command, of_hard = told["hints"]
    assert recorded is None and of_hard is None, "where steps are shown, or there are none, nothing else is offered"
    *words, question, option, mode = shlex.split(command)
    assert (words, option, mode) == (["softtok", "think", run["path"]], "--mode", "soft-sample")
    assert re.fullmatch(r"What is \d+ \+ \d+\?", question)
    assert told["all"] == 12 and told["right"] and told["searched"] == 1
    hard = next(other for other in sketch["runs"] if (other["mode"], other["seed"], other["model"]) == ("hard", 0, "a"))
    solved = {}
    for name, path in (("soft", run["path"]), ("hard", hard["path"])):
        of = pd.read_parquet(root / path / "eval/sums/six-89ab4567.parquet")
        solved[name] = set(of[(of["inference_mode"] == "hard-greedy") & of["correct"]]["problem_id"])
    assert set(told["contrast"]) == solved["hard"] - solved["soft"]


@pytest.mark.skipif(AXE is None, reason="needs axe-core (npm pack axe-core; SOFTTOK_AXE=axe.min.js)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing(width: int, dark: bool, page: Path, tmp_path: Path) -> None:
    script = f"""
        for (const fold of all("details")) fold.open = true;
        await sleep(500);
        {Path(str(AXE)).read_text(encoding="utf-8")}
        const told = await window.axe.run(document, {{ resultTypes: ["violations"] }});
        return told.violations.map((one) => [one.id, one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160))]);
    """
    assert act(page, script, tmp_path, width, dark) == []


def printed(page: Path, folder: Path) -> str:
    """Returns the text of the printed page, pages apart by form feeds."""
    if shutil.which("pdftotext") is None:
        pytest.skip("needs pdftotext (Debian: apt install poppler-utils)")
    pdf, common = folder / "page.pdf", ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    command = [str(CHROMIUM), *common, f"--user-data-dir={folder / 'profile'}", f"--print-to-pdf={pdf}", page.as_uri()]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    return subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout


def test_the_printed_page_has_all_columns(page: Path, tmp_path: Path) -> None:
    """Every table of the page is within the paper's width, as pdftotext reads it."""
    text = printed(page, tmp_path)
    metrics = pd.read_csv(page.parent / "tables/hard-inference.csv")
    for mean in metrics["mean"].iloc[-6:]:
        assert f"{mean:.1f}" in text
    assert text.count("learning_rate: ") >= 1, "folded sections are printed"


def test_a_table_on_several_pages_has_its_heads_on_each(page: Path, tmp_path: Path) -> None:
    """The headline's rows are repeated until they fill pages; Chromium leaves buttons out of heads that it repeats."""
    whole = page.read_text(encoding="utf-8")
    start = whole.index('<tbody class="row"', whole.index('id="headline"'))
    end = whole.index("</table>", start)
    long = tmp_path / "long.html"
    long.write_text(whole[:end] + 9 * whole[start:end] + whole[end:], encoding="utf-8")
    table = [text for text in printed(long, tmp_path).split("\f") if text.count("minus hard") > 2]
    assert len(table) > 2
    for text in table:
        assert "training mode" in text and "pass@1" in text, text
