"""What the README shows is executed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from comining.config import CONFIG_FOLDER, instantiate
from comining.data.convert import main as convert
from tests.annotated_folders import WRITERS
from tests.helpers import composed

ROOT = CONFIG_FOLDER.parent
README = (ROOT / "README.md").read_text()


def test_the_example_of_a_method_trains(tmp_path: Path) -> None:
    """One Python file and one yaml, in a copy of the project; nothing else is touched."""
    for name in ("comining", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    examples = re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL)
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
    section = README.split("## Your own data")[1].split("\n## ")[0]
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


def test_every_choice_is_in_the_readme() -> None:
    """And every file and folder that it names is there."""
    for group in ("method", "detector", "backbone", "sparsity", "view", "data", "launcher"):
        for file in (CONFIG_FOLDER / group).glob("*.yaml"):
            if file.stem != "base":
                assert f"`{file.stem}`" in README or f" {file.stem}" in README, file
    for name in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / name).exists(), name


def test_its_figures_are_those_of_the_results() -> None:
    """Row by row; and the gains that it begins with are in these rows."""
    section = README.split("## Does it work?")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith(("| hard", "| extreme"))]
    assert len(rows) == 18
    results = (ROOT / "RESULTS.md").read_text().splitlines()
    for row in rows:
        assert row in results
    claimed = re.findall(r"\*\*([\d.]+) AP\*\*", README.split("## ")[0])
    gains = [row.split("|")[4].split()[0] for row in rows if row.startswith("| hard | `comining`")]
    assert [f"+{one}" for one in claimed] == gains
