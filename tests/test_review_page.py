"""The page of proposals in a real browser, opened from the disk."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comining.complete import main
from comining.completion.completed_set import check_new
from comining.completion.decisions import Decisions
from comining.completion.proposal_folder import PROPOSALS_FILE, ProposalFolder, ProposalSource
from comining.completion.proposals import digest, write_proposals
from comining.completion.review_page import page_text, write_review_page
from comining.data.formats.coco import read_coco
from comining.data.knowledge import COMPLETE, PARTIAL
from tests.helpers import edit_json
from tests.proposal_folders import ANNOTATED, proposal, proposed, write_decisions, write_folder

# A browser takes its time, and not every machine has one.
pytestmark = pytest.mark.slow

WAIT = 20.0  # seconds, on a busy machine


class Page:
    """A page in a browser, and what a person does with it."""

    def __init__(self, driver: Any, downloads: Path):
        self.driver = driver
        self.downloads = downloads
        self.folder = Path()

    def open(self, folder: Path, *, size: tuple[int, int] = (1280, 800)) -> None:
        """Open the page of a folder as on the first visit."""
        write_review_page(ProposalFolder.read(folder), progress=False)
        self.folder = folder
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.visit()
        self.run("localStorage.clear()")
        self.visit()

    def visit(self) -> None:
        self.driver.get((self.folder / "review.html").absolute().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def keys(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def find(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def all(self, css: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", css)
        return found

    def text(self, css: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", css))

    def choose(self, css: str, value: str) -> None:
        """Set a control, as a person would."""
        self.run(
            "const one = document.querySelector(arguments[0]); one.value = arguments[1];"
            "one.dispatchEvent(new Event('input')); one.dispatchEvent(new Event('change'))",
            css, value,
        )  # fmt: skip

    def wait(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WAIT
        while not (found := condition()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)
        return found

    def current(self) -> str:
        """File, class and box size of the proposal in question."""
        values = [one.text for one in self.all("#numbers dd")]
        return f"{self.text('#caption-file')} {self.text('#class-name')} {values[0]}"

    def saved(self) -> dict[str, Any]:
        """What the page saves."""
        file = self.downloads / "decisions.json"
        file.unlink(missing_ok=True)
        self.keys("s")
        self.wait(file.exists)
        content: dict[str, Any] = json.loads(self.wait(lambda: file.read_text()))
        return content

    def errors(self) -> list[str]:
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def open_browser(module_path: Path) -> Iterator[Page]:
    pytest.importorskip("selenium", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    from benchmarks.review_page import browser

    with browser(1280, 800) as driver:
        driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(module_path)}
        )
        yield Page(driver, module_path)


@pytest.fixture
def page(open_browser: Page) -> Iterator[Page]:
    open_browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    yield open_browser
    assert open_browser.errors() == []


@pytest.fixture
def opened(page: Page, tmp_path: Path) -> Page:
    page.open(write_folder(tmp_path))
    return page


def test_it_opens_without_a_network(opened: Page) -> None:
    first = "return performance.getEntriesByName('first-picture').length"
    opened.wait(lambda: opened.run(first))
    # The name of SVG is no address.
    text = page_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\w+://|fetch\(|XMLHttpRequest|import |url\([^$]*//", text)
    assert opened.text("#progress-text") == "0 of 6 decided"
    assert len(opened.all(".row")) == 6
    assert opened.current() == "001.png class 1 0.50"


def test_it_asks_in_the_order_of_the_file(opened: Page) -> None:
    seen = []
    for _ in proposed():
        seen.append(opened.current())
        opened.keys("n")
    assert seen == [
        "001.png class 1 0.50", "001.png class 1 0.40", "001.png class 2 0.70",
        "002.png class 1 0.90", "003.png class 3 0.20", "003.png class 3 0.95",
    ]  # fmt: skip
    assert opened.current() == seen[-1]
    opened.keys("p", "p")
    assert opened.current() == seen[3]


def test_another_order(page: Page, tmp_path: Path) -> None:
    page.open(write_folder(tmp_path))
    assert main(["review", str(page.folder), "--order", "score", "--quiet"]) == 0
    page.visit()
    seen = []
    for _ in proposed():
        seen.append(page.current().split()[-1])
        page.keys("n")
    assert seen == ["0.95", "0.90", "0.70", "0.50", "0.40", "0.20"]
    page.keys("a")  # the last one, whatever the order
    page.visit()
    assert page.saved()["decisions"] == [{"id": 5, "decision": "accept"}]


def test_boxes_lie_where_the_files_say(opened: Page) -> None:
    script = """return [...document.querySelectorAll('#stage .box')].map(box =>
        [box.dataset.kind, ...['x', 'y', 'width', 'height'].map(key => +box.getAttribute(key))])"""
    first = [[round(value, 2) for value in row[:4]] for row in ANNOTATED[0]]
    assert opened.run(script) == [
        ["annotated", *first[0]], ["annotated", *first[1]], ["current", 5.5, 3.25, 12, 10.5],
    ]  # fmt: skip
    view = "return document.querySelector('#stage').getAttribute('viewBox')"
    assert opened.run(view) == "0 0 64 48"
    picture = opened.find("#stage image")
    assert (picture.get_attribute("width"), picture.get_attribute("height")) == ("64", "48")
    opened.keys("z")
    x, y, width, height = map(float, opened.run(view).split())
    assert x <= 5.5
    assert y <= 3.25
    assert 12 < width == height < 48


def test_what_was_decided_is_saved(opened: Page, tmp_path: Path) -> None:
    opened.keys("a", "r", "c", "3", "a", "u", "x")
    assert opened.text("#progress-text") == "4 of 6 decided"
    content = opened.saved()
    assert content == {
        "version": 1,
        "proposals": digest(proposed()),
        "decisions": [
            {"id": 1, "decision": "accept"},
            {"id": 2, "decision": "reject"},
            {"id": 3, "decision": "class", "category_id": 3},
            {"id": 4, "decision": "reject"},
        ],
        "looked_through": [],
    }
    out, decisions = tmp_path / "out.json", opened.downloads / "decisions.json"
    assert main(["apply", str(opened.folder), str(decisions), "--out", str(out)]) == 0
    added = json.loads(out.read_text())["annotations"][4:]
    assert [(one["image_id"], one["category_id"]) for one in added] == [(1, 1), (1, 3)]


def test_undo_goes_back_to_what_was_undone(opened: Page) -> None:
    opened.keys("a", "a", "u")
    assert opened.current() == "001.png class 1 0.40"
    opened.keys("u", "u")
    assert opened.current() == "001.png class 1 0.50"
    assert opened.saved()["decisions"] == []
    opened.keys("a", "p", "r", "u")  # what was said before is there again
    assert opened.saved()["decisions"] == [{"id": 1, "decision": "accept"}]


def box_of(page: Page, svg: str = "stage") -> list[float]:
    """The box of the proposal in question, as it is drawn: x, y, width and height in px."""
    found: list[float] = page.run(
        """const box = [...document.querySelectorAll(arguments[0] + ' .box')].at(-1);
        return ['x', 'y', 'width', 'height'].map(key => +box.getAttribute(key))""",
        f"#{svg}",
    )
    return found


def drag(
    page: Page, start: tuple[float, float], by: tuple[float, float], svg: str = "stage"
) -> None:
    """Drag with the mouse; both in px of the image."""
    from selenium.webdriver import ActionChains

    script = """const svg = document.getElementById(arguments[0]);
        const frame = svg.getBoundingClientRect();
        const to = (x, y) => new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
        const from = to(arguments[1], arguments[2]), end = to(arguments[3], arguments[4]);
        return [from.x - frame.x - frame.width / 2, from.y - frame.y - frame.height / 2,
                end.x - from.x, end.y - from.y]"""
    end = (start[0] + by[0], start[1] + by[1])
    x, y, across, down = map(round, page.run(script, svg, *start, *end))
    chain = ActionChains(page.driver).move_to_element_with_offset(page.find(f"#{svg}"), x, y)
    chain.click_and_hold().move_by_offset(across, down).release().perform()


@pytest.mark.parametrize("svg", ["stage", "closeup"])
@pytest.mark.parametrize(
    ("start", "by", "expected"),
    [
        ((5.5, 8.5), (-2, 3), [3.5, 3.25, 14, 10.5]),  # the left edge
        ((11.5, 13.75), (1, 4), [5.5, 3.25, 12, 14.5]),  # the lower one
        ((17.5, 3.25), (2, -1), [5.5, 2.25, 14, 11.5]),  # the upper right corner
        ((17.5, 8.5), (-40, 0), [5.5, 3.25, 1, 10.5]),  # not past the other edge
        ((5.5, 3.25), (-7, -5), [0, 0, 17.5, 13.75]),  # nor out of the image
        ((11.5, 8.5), (2, 2), [5.5, 3.25, 12, 10.5]),  # the middle is no edge
    ],
)
def test_edges_are_dragged(
    opened: Page,
    svg: str,
    start: tuple[float, float],
    by: tuple[float, float],
    expected: list[float],
) -> None:
    drag(opened, start, by, svg)
    assert box_of(opened, "stage") == pytest.approx(expected, abs=0.11)
    assert box_of(opened, "closeup") == box_of(opened, "stage")
    opened.keys("a")
    (said,) = opened.saved()["decisions"]
    changed = expected != [5.5, 3.25, 12, 10.5]
    assert said.get("bbox", [5.5, 3.25, 12, 10.5]) == pytest.approx(expected, abs=0.11)
    assert ("bbox" in said) == changed
    if changed:
        opened.keys("u", "u")
        assert box_of(opened) == [5.5, 3.25, 12, 10.5]


def test_a_corrected_box_is_saved_applied_and_loaded(opened: Page, tmp_path: Path) -> None:
    opened.keys("e", "\ue014", "\ue014", "\ue015", "a")  # → → ↓, half a pixel each
    opened.keys("e")
    for _ in range(4):
        opened.keys("\ue013")  # ↑
    opened.keys("\ue00c", "c", "3")  # Esc: then arrows go on to other proposals
    opened.keys("e", "\ue012", "r")  # a rejected proposal has no box
    content = opened.saved()
    assert content["decisions"] == [
        {"id": 1, "decision": "accept", "bbox": [6.5, 3.75, 12, 10.5]},
        {"id": 2, "decision": "class", "category_id": 3, "bbox": [11, 1.25, 12, 10.5]},
        {"id": 3, "decision": "reject"},
    ]
    file, out = opened.downloads / "decisions.json", tmp_path / "out.json"
    assert main(["apply", str(opened.folder), str(file), "--out", str(out)]) == 0
    first = json.loads(out.read_text())["annotations"][4]
    assert first["bbox"] == [6.5, 3.75, 12, 10.5]
    assert first["proposed_bbox"] == [5.5, 3.25, 12, 10.5]
    assert first["area"] == 126
    kept = tmp_path / "kept.json"
    kept.write_text(file.read_text())
    opened.visit()
    assert opened.saved() == content
    opened.run("localStorage.clear()")
    opened.visit()
    assert opened.saved()["decisions"] == []
    opened.find("#load-file").send_keys(str(kept))
    opened.wait(lambda: opened.text("#progress-text") == "3 of 6 decided")
    assert opened.saved() == content


def test_a_corrected_box_without_a_decision_is_said_to_be_left_out(opened: Page) -> None:
    opened.keys("e", "\ue014", "n", "a")
    assert opened.saved()["decisions"] == [{"id": 2, "decision": "accept"}]
    assert opened.text("#message") == (
        "1 decision saved as decisions.json. Not in it: 1 corrected box without a decision."
    )
    assert "•" in opened.text("#save")


def test_a_rejected_box_stays_when_the_same_file_is_loaded(opened: Page, tmp_path: Path) -> None:
    opened.keys("e", "\ue014", "r")
    opened.saved()
    kept = tmp_path / "kept.json"
    kept.write_text((opened.downloads / "decisions.json").read_text())
    opened.find("#load-file").send_keys(str(kept))
    opened.wait(lambda: opened.text("#message") == "1 decision loaded.")
    opened.keys("p", "a")
    assert opened.saved()["decisions"][0]["bbox"] == [6, 3.25, 12, 10.5]


def test_a_loaded_file_says_what_it_replaces(opened: Page, tmp_path: Path) -> None:
    opened.keys("e", "\ue014")
    file = write_decisions(tmp_path / "one.json", {1: "accept"})
    opened.find("#load-file").send_keys(str(file))
    replaced = "1 decision loaded, 1 of yours replaced (U takes that back)."
    opened.wait(lambda: opened.text("#message") == replaced)
    assert box_of(opened) == [5.5, 3.25, 12, 10.5]
    opened.keys("u")
    assert box_of(opened) == [6, 3.25, 12, 10.5]


def test_a_box_that_overhangs_its_image_is_cut_where_it_is_corrected(
    page: Page, tmp_path: Path
) -> None:
    outside = [proposed()[0].model_copy(update={"bbox": (-6.0, 3.25, 18.0, 10.5)})]
    page.open(write_folder(tmp_path, outside))
    drag(page, (12, 8.5), (-20, 0), "closeup")
    assert box_of(page) == pytest.approx([0, 3.25, 1, 10.5], abs=0.01)
    page.keys("u", "e", "\ue015", "a")
    (said,) = page.saved()["decisions"]
    assert said["bbox"] == [0, 3.75, 12, 10.5]
    out, file = tmp_path / "out.json", page.downloads / "decisions.json"
    assert main(["apply", str(page.folder), str(file), "--out", str(out)]) == 0


def test_what_corrects_nothing_is_no_correction(opened: Page) -> None:
    drag(opened, (5.5, 8.5), (0.1, 0))  # a click that trembled
    opened.keys("e", *["\ue012"] * 30, *["\ue014"] * 11)  # to the border, and back
    assert box_of(opened) == [5.5, 3.25, 12, 10.5]
    assert opened.text("#decision") == "Not decided yet"
    opened.keys("\ue014", "E")
    assert opened.text("#decision") == "Not decided yet"
    opened.keys("u")
    assert box_of(opened) == [6, 3.25, 12, 10.5]


def test_a_click_on_an_edge_still_chooses_the_box_under_it(opened: Page) -> None:
    opened.keys("g")  # boxes 1 and 2 overlap, and the second begins at x = 11
    drag(opened, (12.5, 3.5), (0.1, 0))  # near the upper edges of both
    assert opened.text("#caption-place").endswith("box 2 of 2")
    assert opened.text("#decision") == "Not decided yet"


PRESS = """const svg = document.getElementById('stage');
    const [type, x, y, buttons] = arguments;
    const at = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
    svg.dispatchEvent(new PointerEvent(type, {bubbles: true, clientX: at.x, clientY: at.y,
        buttons, button: 0, pointerId: 1, pointerType: 'mouse'}))"""


def test_a_drag_stays_with_its_proposal(opened: Page) -> None:
    opened.keys("a")
    second = box_of(opened)
    opened.run("SVGElement.prototype.setPointerCapture = () => {}")
    opened.run(PRESS, "pointerdown", second[0], second[1] + 5, 1)
    opened.run(PRESS, "pointermove", second[0] - 4, second[1] + 5, 1)
    assert box_of(opened)[0] < second[0] - 3
    opened.run("document.getElementById('undo').click()")  # a second finger
    opened.run(PRESS, "pointerup", second[0] - 4, second[1] + 5, 0)
    assert opened.saved()["decisions"] == []
    assert box_of(opened) == [5.5, 3.25, 12, 10.5]
    opened.keys("n")
    assert box_of(opened) == second
    # The button was let go where the page did not see it.
    opened.run(PRESS, "pointerdown", second[0], second[1] + 5, 1)
    opened.run(PRESS, "pointermove", second[0] - 4, second[1] + 5, 1)
    opened.run(PRESS, "pointermove", second[0] - 9, second[1] + 5, 0)
    opened.keys("a")
    (said,) = opened.saved()["decisions"]
    assert said["bbox"][0] == pytest.approx(second[0] - 4, abs=0.2)


def test_undo_takes_back_all_steps_of_a_correction(opened: Page) -> None:
    before = box_of(opened)
    opened.keys("e", *["\ue014"] * 5)
    opened.run(
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowDown', bubbles: true,"
        " shiftKey: true}))"
    )
    assert box_of(opened) == [before[0] + 2.5, before[1], before[2], before[3] + 0.5]
    assert opened.text("#decision") == "Box corrected, not decided yet"
    opened.keys("u")
    assert box_of(opened) == before
    assert opened.text("#decision") == "Not decided yet"


def test_caps_lock_does_not_matter(opened: Page) -> None:
    for key in ("A", "r"):
        opened.run(
            "document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true,"
            " shiftKey: false}))".replace("document.dispatch", "document.body.dispatch"), key,
        )  # fmt: skip
    assert [one["decision"] for one in opened.saved()["decisions"]] == ["accept", "reject"]


def test_the_mouse_does_the_same(opened: Page) -> None:
    opened.find("#accept").click()
    opened.find("#reject").click()
    opened.find("#other").click()
    opened.all("#chooser .option")[0].click()
    opened.find("#undo").click()
    opened.all(".row")[5].click()
    opened.keys("a")  # keys go on after a click
    said = {one["id"]: one["decision"] for one in opened.saved()["decisions"]}
    assert said == {1: "accept", 2: "reject", 6: "accept"}


def test_a_class_is_chosen_by_typing(opened: Page) -> None:
    opened.keys("c", *"ass 3")
    assert [one.text for one in opened.all("#chooser .option")] == ["3\nclass 3"]
    opened.keys("\ue007")
    opened.keys("c", "\ue00c")
    opened.keys("c", *"none", "\ue007", "\ue00c")
    assert opened.saved()["decisions"] == [{"id": 1, "decision": "class", "category_id": 3}]


def test_a_closed_dialog_that_still_has_the_focus_swallows_no_key(opened: Page) -> None:
    press = """const key = new KeyboardEvent('keydown', {key: 'a', bubbles: true});
        document.getElementById('chooser-text').dispatchEvent(key)"""
    opened.run(press)
    assert opened.text("#progress-text") == "1 of 6 decided"
    opened.keys("c")
    opened.run(press)  # typed into the open dialog
    assert opened.text("#progress-text") == "1 of 6 decided"


def test_decisions_survive_a_reload(opened: Page) -> None:
    opened.keys("a", "c", "2", "r", "l")
    before = opened.saved()
    opened.keys("a")
    opened.visit()
    assert opened.text("#progress-text") == "4 of 6 decided"
    assert opened.current() == "003.png class 3 0.20"  # the first that is undecided
    assert "•" in opened.text("#save")
    after = opened.saved()
    assert after["decisions"][:3] == before["decisions"]
    assert (
        after["looked_through"] == before["looked_through"] == [{"image_id": 2, "category_id": 1}]
    )
    opened.visit()
    assert "•" not in opened.text("#save")


def test_other_proposals_have_decisions_of_their_own(page: Page, tmp_path: Path) -> None:
    page.open(write_folder(tmp_path / "one"))
    page.keys("a")
    page.folder = write_folder(tmp_path / "two", proposed()[:3])
    write_review_page(ProposalFolder.read(page.folder), progress=False)
    page.visit()
    assert page.text("#progress-text") == "0 of 3 decided"


@pytest.mark.parametrize("kept", ["nonsense", '{"decisions": 5}', "null", "[]"])
def test_what_cannot_be_read_is_no_hindrance(opened: Page, kept: str) -> None:
    key = "comining-review:" + digest(proposed())
    opened.run("localStorage.setItem(arguments[0], arguments[1])", key, kept)
    opened.visit()
    opened.keys("a")
    assert opened.text("#progress-text") == "1 of 6 decided"


def test_filters(opened: Page) -> None:
    opened.keys("a")
    opened.choose("#filter-class", "0")
    assert opened.text("#shown") == "3 proposals"
    opened.choose("#filter-low", "0.45")
    assert opened.text("#shown") == "2 proposals"
    opened.choose("#filter-state", "undecided")
    assert opened.text("#shown") == "1 proposal"
    assert opened.current() == "002.png class 1 0.90"
    opened.choose("#filter-high", "0.5")
    assert opened.text("#shown") == "0 proposals"
    assert opened.find("#nothing").is_displayed()
    opened.keys("a", "r", "c", "l", "n", "g", "g")  # nothing to decide on
    opened.choose("#filter-class", "")
    opened.choose("#filter-low", "0")
    opened.choose("#filter-high", "1")
    opened.choose("#filter-state", "all")
    assert opened.text("#shown") == "6 proposals"
    assert [one["id"] for one in opened.saved()["decisions"]] == [1]


def test_numbers_that_are_typed_decide_nothing(opened: Page) -> None:
    opened.find("#filter-low").click()
    opened.keys("a", "r", "0", "u")
    assert opened.text("#progress-text") == "0 of 6 decided"


def test_a_class_of_an_image_as_a_whole(opened: Page, tmp_path: Path) -> None:
    opened.keys("g")
    assert opened.text("#shown") == "6 proposals in 4 pairs"
    kinds = "return [...document.querySelectorAll('#stage .box')].map(box => box.dataset.kind)"
    assert opened.run(kinds) == ["annotated", "annotated", "waiting", "current"]
    opened.keys("a")
    assert opened.text("#caption-place") == "1 of 4, box 2 of 2"
    assert "accepted" in opened.run(kinds)
    opened.keys("R")
    opened.keys("n")
    opened.keys("l")  # class 2 of image 1, whose proposal is not decided
    opened.keys("n", "n")
    assert opened.current() == "003.png class 3 0.20"
    opened.keys("A")
    opened.find("#others summary").click()
    opened.wait(lambda: len(opened.all("#other-classes input")) == 3)
    opened.all("#other-classes input")[1].click()
    content = opened.saved()
    said = {one["id"]: one["decision"] for one in content["decisions"]}
    assert said == {1: "accept", 2: "reject", 5: "accept", 6: "accept"}
    assert content["looked_through"] == [
        {"image_id": 1, "category_id": 2}, {"image_id": 3, "category_id": 2},
    ]  # fmt: skip
    opened.keys("u", "u", "u")
    content = opened.saved()
    assert [one["id"] for one in content["decisions"]] == [1, 2]
    assert content["looked_through"] == []


def test_unlikely_ones_are_faint_until_they_are_looked_at(page: Page, tmp_path: Path) -> None:
    page.open(write_folder(tmp_path, proposed([(1, 1, 0.5), (1, 1, 0.4), (1, 1, 0.09)])))
    page.keys("g")
    faint = """return [...document.querySelectorAll('#stage .box')]
        .filter(box => box.dataset.kind === 'waiting')
        .map(box => getComputedStyle(box.parentElement).opacity)"""
    captions = "return [...document.querySelectorAll('#stage text')].map(one => one.textContent)"
    assert page.run(faint) == ["1", "0.4"]
    assert page.run(captions)[-3:] == ["2 ", "3 ", "1 class 1?"]
    page.keys("\ue015", "\ue015")  # arrow down
    assert page.run(faint) == ["1", "1"]


def test_the_proposed_class_is_no_other_class(opened: Page) -> None:
    opened.keys("c", *"class 1")
    assert "proposed as class 1" in opened.text("#chooser-list")


def test_the_review_is_known_afterwards(opened: Page, tmp_path: Path) -> None:
    opened.keys("g", "A", "n", "l")
    opened.saved()
    folder = ProposalFolder.read(opened.folder)
    decisions = Decisions.read([opened.downloads / "decisions.json"], folder)
    assert decisions.looked_through == {(1, 2)}
    out = tmp_path / "out.json"
    file = opened.downloads / "decisions.json"
    assert main(["apply", str(opened.folder), str(file), "--out", str(out)]) == 0
    status = read_coco(out).annotated_as("fields").status.tolist()
    assert status[0] == [COMPLETE, COMPLETE, PARTIAL]
    assert status[1:] == [[PARTIAL] * 3] * 3


def test_a_file_of_decisions_is_loaded_again(opened: Page, tmp_path: Path) -> None:
    opened.keys("r")
    file = write_decisions(
        tmp_path / "mine.json", {1: "accept", 3: 3, 6: "reject"}, [(4, 2), (2, 3)]
    )
    opened.find("#load-file").send_keys(str(file))
    opened.wait(lambda: opened.text("#progress-text") == "3 of 6 decided")
    assert "1 of yours replaced" in opened.text("#message")
    content = opened.saved()
    assert content["decisions"] == json.loads(file.read_text())["decisions"]
    # Image 4 has no proposal, so that it is not on the page.
    assert content["looked_through"] == [{"image_id": 2, "category_id": 3}]
    opened.keys("u")
    assert opened.saved()["decisions"] == [{"id": 1, "decision": "reject"}]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda content: content.update(proposals="sha256:0"), "on other proposals"),
        (lambda content: content["decisions"][0].update(id=99), "proposal 99 is not on this page"),
        (lambda content: content["decisions"][0].update(decision="constructor"), "no decision"),
        (lambda content: content["decisions"].append(None), "no decisions.json"),
        (lambda content: content.update(version=2), "no decisions.json"),
    ],
)
def test_other_files_are_refused(
    opened: Page, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], says: str
) -> None:
    file = edit_json(write_decisions(tmp_path / "mine.json", {1: "accept"}), spoil)
    opened.find("#load-file").send_keys(str(file))
    opened.wait(lambda: says in opened.text("#message"))
    assert opened.text("#progress-text") == "0 of 6 decided"


HOSTILE = ["</script><script>window.bad = 1</script>", "\"'><img src=x onerror='window.bad = 1'>",
           "__proto__ & Zürich 🐈‍⬛"]  # fmt: skip


def test_names_are_only_names(page: Page, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, classes=HOSTILE)
    files = ["a#b?c%20.png", "x'\"<b>&amp;.png", "ü 🐈/\u2028\\.png"]

    def rename(content: dict[str, Any]) -> None:
        for category, name in zip(content["categories"], HOSTILE, strict=True):
            category["name"] = name
        for image, name in zip(content["images"], files):
            place = tmp_path / "train" / name
            place.parent.mkdir(exist_ok=True)
            (tmp_path / "train" / image["file_name"]).rename(place)
            image["file_name"] = name

    edit_json(tmp_path / "train.json", rename)
    page.open(folder)
    options = page.run(
        "return [...document.querySelectorAll('#filter-class option')].map(o => o.text)"
    )
    assert [one.rpartition(" (")[0] for one in options[1:]] == HOSTILE
    shown = "return document.querySelector('#stage image').getAttribute('href')"
    for number, name in [(0, files[0]), (3, files[1]), (4, files[2])]:
        page.all(".row")[number].click()
        assert page.text("#caption-file") == name.replace("\\", "/")
        page.wait(lambda: page.run(shown).startswith("../train/"))  # the picture itself
    assert page.text("#class-name") == HOSTILE[2]
    page.keys("c", *"zür", "\ue00c")
    assert page.run("return window.bad") is None


def test_a_picture_that_browsers_turn_is_shown_by_its_copy(page: Page, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "red").save(tmp_path / "train" / "001.png", "JPEG", exif=exif)
    page.open(folder)
    page.keys("n", "n", "n")
    shown = "return document.querySelector('#stage image').getAttribute('href')"
    page.wait(lambda: page.run(shown) == "../train/002.png")
    page.keys("p")
    assert page.run(shown) == "thumbnails/1.jpg"


GROUND = "return getComputedStyle(document.body).backgroundColor"


def brightness(colour: str) -> float:
    return float(np.mean([int(part) for part in colour.strip("rgb()").split(",")]))


def test_colours_follow_the_system_and_the_switch(opened: Page) -> None:
    def system(scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    system("dark")
    assert brightness(opened.run(GROUND)) < 60
    system("light")
    assert brightness(opened.run(GROUND)) > 220
    opened.keys("t", "t")
    assert opened.text("#theme") == "Theme: Dark"
    assert brightness(opened.run(GROUND)) < 60
    opened.visit()
    assert brightness(opened.run(GROUND)) < 60
    opened.find("#theme").click()
    assert opened.text("#theme") == "Theme: Auto"
    assert brightness(opened.run(GROUND)) > 220


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        shares = np.array([int(part) / 255 for part in colour.strip("rgb()").split(",")])
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read(opened: Page, theme: str) -> None:
    opened.run("localStorage.setItem('comining-review:theme', arguments[0])", theme)
    opened.visit()
    opened.keys("a", "r", "c", "3")
    script = """const ground = one => { const colour = getComputedStyle(one).backgroundColor;
        const clear = colour.startsWith('rgba') && one.parentElement;
        return clear ? ground(one.parentElement) : colour };
        const words = 'h1, button, label, small, .row b, .mark, dt, dd, #decision';
        return [...document.querySelectorAll(words)]
        .filter(one => one.offsetWidth && one.textContent.trim() && !one.disabled)
        .map(one => [one.textContent, getComputedStyle(one).color, ground(one)])"""
    found = opened.run(script)
    assert len(found) > 30
    poor = [row for row in found if contrast(row[1], row[2]) < 4.5]
    assert poor == []


@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_window(page: Page, tmp_path: Path, width: int) -> None:
    page.open(write_folder(tmp_path), size=(width, 800))
    page.keys("g")
    assert page.run("return document.documentElement.scrollWidth") <= width
    stage = page.find("#stage").rect
    assert stage["width"] > 0.5 * width or width == 1280
    assert stage["height"] > 250
    for name in ("accept", "reject", "other", "undo", "next", "looked", "accept-rest", "save"):
        rect = page.find(f"#{name}").rect
        assert rect["x"] >= 0
        assert rect["x"] + rect["width"] <= width
        assert rect["y"] + rect["height"] <= 800
        assert rect["height"] >= 32
    page.find("#accept").click()
    assert page.text("#progress-text") == "1 of 6 decided"
    if width == 400:
        assert not page.find("#list-pane").is_displayed()
        page.find("#show-list").click()
        page.wait(lambda: len(page.all(".row")) == 4)
        page.all(".row")[2].click()
        assert not page.find("#list-pane").is_displayed()
        assert page.text("#caption-place").startswith("3 of 4")
        page.find("#show-filters").click()
        assert page.find("#filter-class").is_displayed()


def test_of_many_pictures_only_a_few_are_looked_at(page: Page, tmp_path: Path) -> None:
    count = 2000
    images = [
        {"id": number, "file_name": f"{number}.png", "width": 32, "height": 24}
        for number in range(1, count + 1)
    ]
    (tmp_path / "train").mkdir()
    for image in images:
        colour = tuple(int(image["id"]) >> shift & 255 for shift in (0, 3, 6))
        Image.new("RGB", (32, 24), colour).save(tmp_path / "train" / str(image["file_name"]))
    content = {
        "images": images, "annotations": [], "categories": [{"id": 1, "name": "class 1"}],
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(content))
    folder = tmp_path / "proposals"
    folder.mkdir()
    source = ProposalSource(annotations="../train.json", images="../train", classes=["class 1"])
    source.write(folder)
    box = (2.0, 3.0, 9.0, 9.0)
    proposals = [
        proposal(number, number, 1, 0.5).model_copy(update={"bbox": box})
        for number in range(1, count + 1)
    ]
    check_new(folder / PROPOSALS_FILE)
    write_proposals(folder / PROPOSALS_FILE, proposals)
    page.open(folder)
    first = "return performance.getEntriesByName('first-picture').length"
    page.wait(lambda: page.run(first))
    assert len(page.all(".row")) < 40
    assert page.run("return document.querySelectorAll('*').length") < 600
    page.run("document.getElementById('list').scrollTop = 1e9")
    # In one call: the page may draw its rows anew between finding one and reading it.
    last = "return [...document.querySelectorAll('.row')].at(-1).innerText"
    page.wait(lambda: page.run(last).strip().endswith("2000.png"))
    assert len(page.all(".row")) < 40
    page.all(".row")[-1].click()
    assert page.text("#caption-place") == "2000 of 2000"
    page.keys("a")
    assert page.text("#caption-place") == "1 of 2000"  # on to the first that is undecided
