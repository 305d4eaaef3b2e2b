"""What the README and the pages on data, knowledge and results show is executed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from comining.config import CONFIG_FOLDER, instantiate
from comining.data.convert import main as convert
from comining.data.sparsity import main as write_sparse_file
from comining.runs.command_line import readable
from comining.runs.outcome import knowledge_lines
from tests.annotated_folders import WRITERS
from tests.helpers import composed, edit_json, write_coco

ROOT = CONFIG_FOLDER.parent
README = (ROOT / "README.md").read_text()
METHODS = (ROOT / "docs" / "methods" / "index.md").read_text()
DATA = (ROOT / "docs" / "data.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
KNOWLEDGE = (ROOT / "docs" / "knowledge.md").read_text()


@pytest.mark.slow
def test_the_example_of_a_method_trains(tmp_path: Path) -> None:
    """One Python file and one yaml, in a copy of the project; nothing else is touched."""
    for name in ("comining", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    examples = re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", METHODS, re.DOTALL)
    assert [Path(name).suffix for name, _ in examples] == [".py", ".yaml"]
    for name, code in examples:
        assert len([line for line in code.splitlines() if line.strip()]) <= 10
        (tmp_path / name).write_text(code)
    options = [
        "method=light_background",
        "data.prepare.train_images=8",
        "data.prepare.val_images=2",
        "data.prepare.test_images=2",
        "data.batch_size=4",
        "trainer.max_steps=2",
        "trainer.enable_progress_bar=false",
        "hydra.run.dir=out",
    ]
    done = subprocess.run(
        [sys.executable, "train.py", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["method"] == "light_background"


def test_commands_for_your_own_data(tmp_path: Path) -> None:
    """Every one reads a set of its format; the last of them converts it."""
    section = DATA.split("## Your own data")[1].split("\n## ")[0]
    commands = [shlex.split(one) for one in re.findall(r"\| `(python [^`]+)` \|", section)]
    read = set()
    for number, (_, *words) in enumerate(commands):
        root = tmp_path / f"set {number}, [x]=é"
        options = [word.replace("DIR", str(root)) for word in words]
        chosen = next((word[5:] for word in words if word.startswith("data=")), "yolo")
        writer = {"auto": "voc", "custom": "coco_folder"}.get(chosen, chosen)
        WRITERS[writer](root)
        if chosen == "custom":
            (root / "annotations/train.json").rename(root / "train.json")
        if words[0] == "-m":
            assert words[1] == "comining.data.convert"
            convert([*options[2:3], str(tmp_path / "out"), *options[4:]])
            assert (tmp_path / "out" / "data.yaml").exists()
            continue
        assert words[0] == "train.py"
        cfg = composed(*(word for word in words[1:] if not word.startswith("data.root=")))
        cfg.data.root = str(root)
        sparsity = instantiate(cfg.sparsity, "sparsity")
        data = instantiate(cfg.data, "data", sparsity=sparsity, seed=0)
        data.setup("fit")
        assert len(data.train_set) + len(data.val_set) <= 3
        read.add(chosen)
    assert read == {"auto", "yolo", "voc", "cvat", "labelme", "coco_folder", "custom"}


def partly_annotated(root: Path) -> None:
    """What the page on knowledge names: files for several classes, and sets in other formats."""
    for folder, names in (("cats", ["cat"]), ("dogs", ["dog"]), ("train", [*"ab", "unsure"])):
        records = [[(5.0 * n, 2.0, 9.0, 9.0, n) for n in range(1, len(names) + 1)]] * 3
        for split in (folder, "val") if folder == "train" else (folder,):
            file = write_coco(root, records, split=split)
            edit_json(file, lambda content, names=names: content.update(categories=[
                {"id": n, "name": name} for n, name in enumerate(names, start=1)
            ]))  # fmt: skip
    shutil.copy(root / "train.json", root / "full.json")


def shown_commands(page: str) -> list[list[str]]:
    """The words of every command in a code block."""
    blocks = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("python ")]


def test_commands_of_the_page_on_knowledge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of training reads its set, and those that write a file do."""
    coco = tmp_path / "coco"
    partly_annotated(coco)
    monkeypatch.chdir(coco)
    small = [f"data.prepare.{split}_images=8" for split in ("train", "val", "test")]
    read = []
    for words in shown_commands(KNOWLEDGE):
        if words[:2] == ["-m", "comining.data.sparsity"]:
            write_sparse_file(words[2:])
            images = json.loads((coco / words[3]).read_text())["images"]
            assert any("neg_category_ids" in one for one in images) == ("classes" in words)
            continue
        if words[0] == "evaluate.py":
            cfg = composed(*readable(words[1:], data_of_checkpoint=True), name="evaluate")
            assert cfg.data_override == {"val_annotated": "partial"}
            continue
        assert words[0] == "train.py"
        chosen = next((word[5:] for word in words if word.startswith("data=")), "shapes")
        root = coco if chosen == "custom" else tmp_path / chosen
        if chosen in WRITERS:
            WRITERS[chosen](root)
        given = [word for word in words[1:] if not word.startswith("data.root=")]
        cfg = composed(*given, *(small if chosen == "shapes" else []))
        cfg.data.root = str(root)
        data = instantiate(cfg.data, "data", sparsity=instantiate(cfg.sparsity, "sparsity"), seed=0)
        instantiate(cfg.checkpoint, "checkpoint", folder="unused")
        data.setup("fit")
        known = data.summary()["train"]["known"]
        read.append((chosen, known["complete"], known["not_looked_for"], known["ignored_regions"]))
        assert data.evaluated["val"].is_partial == (
            "data.val_annotated=partial" in words
            # A share of the training images.
            or (chosen in ("custom", "voc") and "data.annotated=fields" not in words)
        )
    merged, by_fields, without_class, voc, yolo, classes, untold, regions, last = read
    assert merged[0] == "custom"
    assert merged[2] > 0
    assert by_fields[1] > 0
    assert without_class[3] > 0
    assert voc[0] == "voc"
    assert yolo[:1] == ("yolo",)
    assert yolo[1] > 0
    assert classes == ("shapes", 24, 24, 0)
    assert untold == ("shapes", 0, 0, 0)
    assert regions[3] > 0
    assert last == ("custom", 0, 0, 0)


def test_the_page_on_knowledge_has_the_options_and_their_defaults() -> None:
    """Those that the configuration has; and what it links to is there."""
    data = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "data" / "base.yaml"))
    rows = re.findall(r"^\| `data\.(\w+)` \| (`?)([\w.]+)", KNOWLEDGE, re.MULTILINE)
    assert len(rows) == 8
    for name, quote, default in rows:
        of_file = data[name]
        if isinstance(of_file, float):
            assert float(default) == of_file
        elif quote:
            assert of_file == yaml.safe_load(default)
        else:  # in words
            assert of_file is None
    for page in ("README.md", "docs/data.md", "docs/formats.md"):
        assert "knowledge.md" in (ROOT / page).read_text()
    printed = "\n".join(knowledge_lines(
        {"complete": 3000, "not_looked_for": 3000, "partial": 0, "ignored_regions": 0, "classes": {
            "circle": {"complete": 516, "not_looked_for": 484, "partial": 0}
        }}
    ))  # fmt: skip
    for line in printed.splitlines():
        assert f"  {line}\n" in KNOWLEDGE


def test_what_the_readme_links_to_is_there() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / name).exists(), name


def results_tables() -> list[str]:
    return (ROOT / "RESULTS.md").read_text().split("\n## ")


def test_figures_are_those_of_the_results() -> None:
    """Row by row; and the gains that the README begins with are in these rows."""
    results = (ROOT / "RESULTS.md").read_text().splitlines()
    shown = {}
    for name, page in (("README", README), ("docs/results.md", RESULTS)):
        section = page.split("## Does it work?")[1].split("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith(("| hard", "| extreme"))]
        shown[name] = rows
        for row in rows:
            assert row in results, (name, row)
    assert set(shown["README"]) < set(shown["docs/results.md"])
    claimed = re.findall(r"\*\*([\d.]+)\s+AP\*\*", README.split("## ")[0])
    gains = [
        row.split("|")[4].split()[0]
        for row in shown["README"]
        if row.startswith("| hard | `comining`")
    ]
    assert [f"+{one}" for one in claimed] == gains
    assert len(gains) == 2

    own = README.split("## Your own data")[1].split("\n## ")[0]
    (table,) = [one for one in results_tables() if one.startswith("highway-own\n")]
    best = re.search(r"\| full \| `annotation_rate` \| ([\d.]+) \(1 seed\)", table)
    random = re.search(r"backbone\.weights=null.*\| 0 \| [\d.]+ \| ([\d.]+) \|", table)
    assert best is not None
    assert random is not None
    reached = re.findall(r"reaches (\d+\.\d)", " ".join(own.split()))
    assert reached == [best[1], random[1]]


def test_the_table_of_methods_has_the_figures_of_the_results() -> None:
    advice = README.split("## Which method")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in advice.splitlines() if line.startswith("| `")]
    assert len(rows) == 4
    for name, *cells in rows:
        method, pasting = re.fullmatch(r"`(\w+)`(, pasted)?", name).groups()  # type: ignore[union-attr]
        expected = []
        for data in ("shapes", "bccd", "highway"):
            kind = f"{data}-pasted" if pasting else data
            (table,) = [one for one in results_tables() if one.startswith(f"{kind}\n")]
            for sparsity in ("hard", "extreme"):
                row = re.search(rf"^\| {sparsity} \| `{method}` \| ([^|]+) \|", table, re.MULTILINE)
                assert row is not None, (kind, sparsity, method)
                expected.append(row[1])
        assert cells == expected, name
