"""report.html: its values, hostile names, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest
from PIL import Image

from comining.report import main
from comining.reports.curves import MOST_POINTS, read_curves, thinned
from comining.reports.html_page import address, run_names, short_names, thumbnail, write_page
from comining.runs.result import RunResult
from tests.helpers import edit_json
from tests.recorded import RunFolder

Trained = tuple[Path, dict[tuple[str, str], RunResult]]


class Page(HTMLParser):
    """Cells of tables, addresses and headings of a page."""

    def __init__(self, file: Path):
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.tags: list[str] = []
        self.data = ""
        self._is_data = self._in_cell = False
        text = file.read_text(encoding="utf-8")
        self.text = text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "a":
            self.links.append(given["href"] or "")
        elif tag == "img":
            self.images.append(given["src"] or "")
        self._is_data |= given.get("id") == "data"
        self._in_cell |= tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._is_data &= tag != "script"
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._is_data:
            self.data += data
        elif self._in_cell:
            self.rows[-1][-1] += data

    @property
    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.data)["runs"]
        return found

    def row(self, first: str) -> list[str]:
        return next([c.strip() for c in row] for row in self.rows if row and first in row[0])


def page_of(folder: Path) -> Page:
    return Page(write_page([folder], folder))


def write_metrics(run: Path, rows: dict[int, dict[str, float]]) -> None:
    pd.DataFrame([{"step": step, **row} for step, row in rows.items()]).to_csv(
        run / "metrics.csv", index=False
    )


# -- curves ------------------------------------------------------------------------------


def test_curves_are_those_of_metrics_csv(tmp_path: Path) -> None:
    mined = "mining/pseudo_labels_per_image"
    write_metrics(tmp_path, {5: {mined: 1.0}, 10: {mined: 2.5}, 11: {"val/AP": 7.0}})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("12,nan,inf\n1")  # numbers that JSON cannot say, and half a row
    history = [{"step": 3, "AP": 99.0, "pseudo_labels_per_image": 9.0}]
    assert read_curves(tmp_path, history) == {"ap": [(11, 7.0)], "mined": [(5, 1.0), (10, 2.5)]}


def test_without_metrics_csv_the_history_is_taken(tmp_path: Path) -> None:
    history = [{"step": 3, "AP": 1.0, "pseudo_labels_per_image": None}, {"step": 6, "AP": 2.0}]
    assert read_curves(tmp_path, history) == {"ap": [(3, 1.0), (6, 2.0)], "mined": []}
    assert read_curves(tmp_path, []) == {"ap": [], "mined": []}


def test_long_curves_are_thinned_to_means() -> None:
    curve = [(step, float(step)) for step in range(1, 2401)]
    thin = thinned(curve)
    assert len(thin) == MOST_POINTS
    assert thin[0] == (10, 5.5)  # of 1 to 10
    assert thin[-1] == (2400, 2395.5)
    assert thinned(curve[:MOST_POINTS]) == curve[:MOST_POINTS]


# -- names and addresses -----------------------------------------------------------------


def test_names_of_runs(tmp_path: Path) -> None:
    folders = [tmp_path / "sweep" / name for name in ("a", "b/c")]
    assert run_names(folders) == ["a", "b/c"]
    assert run_names(folders[1:]) == ["c"]
    assert run_names([]) == []


def test_short_names() -> None:
    names = [f"max_steps-60_seed-{seed}_{'x' * 40}_tau-0.5_of" for seed in range(3)]
    assert short_names(names) == ["…_seed-0_…", "…_seed-1_…", "…_seed-2_…"]
    assert short_names(names[:1]) == names[:1]
    assert short_names(["a_b", "a_c"]) == ["a_b", "a_c"]  # short enough
    twins = [f"{'x' * 40}_a_b", f"b_a_{'x' * 40}"]  # they would become the same
    assert short_names(twins) == twins


def test_addresses_are_relative(tmp_path: Path) -> None:
    run = tmp_path / "a b#?%é"
    assert unquote(address(run, tmp_path)) == "./a b#?%é"
    assert not re.search(r"[ #?é]", address(run, tmp_path))
    assert address(tmp_path / "x" / "1", tmp_path / "y") == "../x/1"
    assert address(tmp_path / "http:x", tmp_path).startswith("./")


# -- the page ----------------------------------------------------------------------------


def test_runs_that_ended_in_every_way(trained: Trained, tmp_path: Path) -> None:
    """Real runs: what the page says of them is what their records and metrics.csv say."""
    folder = tmp_path / "runs"
    shutil.copytree(trained[0], folder)
    under_way = folder / "under way"
    shutil.copytree(folder / "interrupted", under_way)
    (under_way / "result.json").unlink()
    page = page_of(folder)
    files = sorted(folder.rglob("result.json"))
    assert len(page.runs) == len(files) + 1 == 10
    assert "10 runs: 2 finished, 2 diverged, 4 failed, 1 interrupted, 1 no result yet" in page.text
    for file, run in zip(files, page.runs, strict=False):
        record = RunResult.read(file)
        assert (run["status"], run["method"]) == (record.status, record.method)
        assert run["seed"] == ("-" if record.seed is None else str(record.seed))
        if record.status == "finished":
            assert run["curves"]["ap"] == [[row["step"], row["AP"]] for row in record.history]
            assert bool(run["curves"]["mined"]) == (record.method == "comining")
    assert page.runs[-1]["status"] == "no result yet"
    assert (page.runs[-1]["seed"], page.runs[-1]["threshold"]) == ("0", "0.5")
    assert page.runs[-1]["curves"]["mined"]
    for link in page.links:
        assert (folder / unquote(link)).exists(), link


def test_the_papers_table_beside_ours(runs: RunFolder) -> None:
    for tau, ap in ((0.5, 30.0), (0.6, 31.04)):
        runs.add(ap, table="table3", tau=tau, seed=0)
    runs.add(table="table3", status="diverged", tau=0.4)
    page = page_of(runs.root)
    assert page.row("0.4") == ["0.4", "NaN", "NaN"]
    assert page.row("0.5") == ["0.5", "30.0", "30.6"]
    assert page.row("0.6") == ["0.6", "31.0", "31.8"]
    assert page.row("0.7") == ["0.7", "missing", "30.7"]
    assert "<b>31.0</b>" in page.text
    assert "<b>30.0</b>" not in page.text
    assert "Missing: 0.7, 0.8." in page.text


def test_numbers_of_a_run(runs: RunFolder) -> None:
    mining = {"pseudo_labels_per_image": 3.456, "precision": 0.5, "recall": None}
    runs.add(20.06, test_ap=19.0, tau=0.25, seed=7, mining=mining, ap_is_lower_bound=True)
    page = page_of(runs.root)
    numbers = ["≥ 20.1", "19.0", "3.46", "0.50", "-"]
    assert page.row("0")[1:] == [
        "finished", "comining", "0.25", "hard", "retinanet", "color", "7", *numbers
    ]  # fmt: skip
    assert "a lower bound" in page.text


def test_a_hostile_name_or_error_is_only_text(runs: RunFolder) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&<!-- data -->"
    file = runs.add(status="failed", error=evil, sparsity=evil, table=None)
    runs.add(10.0, method=evil)
    file.parent.rename(runs.root / "a&b <i>\"'")
    before = page_of(runs.root)
    assert before.tags.count("script") == 2
    assert "img" not in before.tags
    assert "i" not in before.tags
    assert {run["sparsity"] for run in before.runs} >= {evil}
    assert {run["method"] for run in before.runs} >= {evil}
    assert evil in before.row("a&b")[0].replace("\n", "")


def test_a_damaged_picture_is_said_to_be_unreadable(tmp_path: Path) -> None:
    file = tmp_path / "mined_000001.png"
    Image.new("RGB", (8, 8)).save(file)
    for damaged in (
        file.read_bytes().replace(b"IDAT", b"\x00\x01\x02\x03"), file.read_bytes()[:40], b"",
    ):  # fmt: skip
        file.write_bytes(damaged)
        assert thumbnail(file) is None


def test_thumbnails_are_inside_and_sheets_linked(runs: RunFolder) -> None:
    folder = runs.add(10.0).parent
    (folder / "pictures").mkdir()
    for name in ("mined_000300.png", "mined_001200.png", "mined_over_time.png", "wrong.png"):
        Image.new("RGB", (900, 500), (10, 20, 30)).save(folder / "pictures" / name)
    broken = runs.add(11.0, seed=1).parent
    (broken / "pictures").mkdir()
    (broken / "pictures" / "detections_000300.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    page = page_of(runs.root)
    assert [src[:22] for src in page.images] == ["data:image/jpeg;base64"]
    sheets = [link for link in page.links if "pictures" in link]
    # The thumbnail's link, and one for each kind.
    assert [Path(link).name for link in sheets] == [
        "mined_001200.png", "mined_001200.png", "mined_over_time.png", "wrong.png",
        "detections_000300.png", "detections_000300.png",
    ]  # fmt: skip
    assert "detections_000300.png cannot be read" in page.text


def test_sixty_runs_and_a_run_alone(runs: RunFolder) -> None:
    for number in range(60):
        runs.add(float(number), seed=number, method=("comining", "original")[number % 2])
    assert len(page_of(runs.root).runs) == 60
    alone = runs.root / "7"
    page = page_of(alone)
    assert [run["name"] for run in page.runs] == ["7"]
    assert page.links == ["./"]
    edit_json(alone / "result.json", lambda content: content.update(history=[]))
    assert page_of(alone).runs[0]["curves"] == {"ap": [], "mined": []}


def test_the_command_writes_it_only_when_asked(
    runs: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.add(10.0)
    out = tmp_path / "out"
    assert main([str(runs.root), "--output", str(out)]) == 0
    assert not (out / "report.html").exists()
    assert main([str(runs.root), "--output", str(out), "--html"]) == 0
    assert f"written: {out / 'report.html'}" in capsys.readouterr().out
    assert Page(out / "report.html").links == ["../runs/0/"]
    assert main([str(tmp_path / "nowhere"), "--html"]) == 2


def test_nothing_is_loaded_from_a_network(runs: RunFolder) -> None:
    runs.add(10.0)
    text = page_of(runs.root).text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\w+://|fetch\(|XMLHttpRequest|import |@import|<link|url\(", text)
    assert "default-src 'none'" in text


# -- in a browser ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    pytest.importorskip("selenium", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    from benchmarks.review_page import browser

    with browser(1280, 900) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(driver: Any, runs: RunFolder, width: int, theme: str) -> None:
    mined = "mining/pseudo_labels_per_image"
    for number, tau in enumerate([0.4, 0.5, 0.6, 0.7] * 15):
        status = "diverged" if number == 1 else "finished"
        run = runs.add(20.0 + number, tau=tau, seed=number // 4, status=status).parent
        write_metrics(
            run, {step: {"val/AP": step / 10 + number, mined: tau} for step in range(100, 700, 100)}
        )
        run.rename(runs.root / f"data.root-{'y' * 60}_seed-{number // 4}_tau-{tau}")
    file = write_page([runs.root], runs.root)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preferred = [{"name": "prefers-color-scheme", "value": theme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})
    driver.get(file.absolute().as_uri())
    run_script = driver.execute_script
    assert run_script("return document.documentElement.scrollWidth") <= width
    assert run_script("return document.querySelector('#colour-by').value") == "threshold"
    assert run_script("return document.querySelectorAll('[data-curve=ap] .run').length") == 60
    # Contrast of text and of curves against what they lie on: WCAG's 4.5 and 3.
    for css, least in (
        (".note", 4.5),
        (".error", 4.5),
        (".tick", 4.5),
        ("#runs a", 4.5),
        (".curve", 3),
    ):
        assert run_script(CONTRAST, css) >= least, css
    assert run_script(OVERLAPS) == []
    # Pointing at a point names its run, step and value.
    tip = run_script(
        """const plot = document.querySelector('[data-curve=ap]');
        const [x, y, number, [step, value]] = plot.points.at(-1);
        const box = plot.getBoundingClientRect();
        const at = {clientX: box.left + x, clientY: box.top + y};
        plot.dispatchEvent(new PointerEvent('pointermove', at));
        const tip = plot.querySelector('.tip').getBoundingClientRect();
        return [plot.querySelector('.tip').textContent, step, value,
                tip.left >= box.left - 1 && tip.right <= box.right + 1,
                plot.querySelectorAll('.run.on').length];"""
    )
    assert f"step {tip[1]}: {tip[2]:g}" in tip[0]
    assert tip[3:] == [True, 1]
    # A click in the legend hides the runs of that value.
    run_script("document.querySelector('#legend button').click()")
    assert run_script("return document.querySelectorAll('[data-curve=ap] .run').length") == 45
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


CONTRAST = """
const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (text) => rgb(text).map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
const ground = (node) => {
  for (let one = node; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)' && colour !== 'transparent') return colour;
  }
  return 'rgb(255, 255, 255)';
};
return Math.min(...[...document.querySelectorAll(arguments[0])].map((node) => {
  const style = getComputedStyle(node);
  const drawn = node.classList.contains('curve') ? style.stroke : style.fill;
  const ink = node instanceof SVGElement ? drawn : style.color;
  const [a, b] = [light(ink), light(ground(node))].sort((p, q) => q - p);
  return (a + 0.05) / (b + 0.05);
}));
"""
OVERLAPS = """
const found = [];
for (const plot of document.querySelectorAll('.plot')) {
  const boxes = [...plot.querySelectorAll('text')]
    .map((one) => [one.textContent, one.getBoundingClientRect()]);
  boxes.forEach(([words, a], n) => boxes.slice(n + 1).forEach(([others, b]) => {
    const beside = a.left >= b.right || b.left >= a.right;
    if (!beside && a.top + 3 < b.bottom && b.top + 3 < a.bottom) found.push([words, others]);
  }));
}
return found;
"""
