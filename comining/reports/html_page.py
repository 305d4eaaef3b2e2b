"""``report.html``: an overview of a sweep, in one file that needs neither network nor server."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import yaml
from PIL import Image

from comining.reports.cells import LOWER_BOUND, STATUSES, number
from comining.reports.curves import read_curves
from comining.reports.paper_tables import ResultTable, result_tables
from comining.reports.records import Results, find_results, read_results, runs_frame
from comining.runs.files import replace_file

PAGE_FILE = "report.html"
UNFINISHED = "no result yet"  # still running, or killed
THUMBNAIL = 440  # px of the width
QUALITY = 72  # of JPEG
# Sheets of a run, the latest of each kind; the first that exists is the thumbnail.
SHEETS = {
    "mined": "mined_[0-9]*.png",
    "mined over time": "mined_over_time.png",
    "detections": "detections_[0-9]*.png",
    "wrong boxes": "wrong.png",
}
# Attributes in which runs may differ: column of the frame of runs -> heading.
ATTRIBUTES = {
    "method": "method",
    "threshold": "τ",
    "sparsity": "sparsity",
    "detector": "detector",
    "view": "view",
    "seed": "seed",
}
NUMBERS = {
    "AP": ("validation AP", ".1f"),
    "test_AP": ("test AP", ".1f"),
    "pseudo_labels_per_image": ("pseudo-labels per image", ".2f"),
    "precision": ("precision", ".2f"),
    "recall": ("recall", ".2f"),
}


def write_page(folders: Sequence[Path], output: Path) -> Path:
    """Write the page and return its path.

    Args:
        folders: directories of runs or sweeps.
        output: the folder to write to; links to run directories are relative to it.

    Raises:
        DataError: a folder does not exist, or a file is not a result; names it.
        OSError: the page cannot be written.
    """
    found, without_result = find_results(folders)
    results = read_results(found)
    runs = runs_frame(results)
    rows = run_rows(output, results, runs, without_result)
    title = ", ".join(folder.resolve().name for folder in folders[:3])
    title += f" and {len(folders) - 3} more" if len(folders) > 3 else ""
    content = {
        "title": escape(title),
        "counts": escape(_counts(runs, without_result)),
        "tables": "\n".join(map(_table, result_tables(runs, folders))),
        "head": "".join(f"<th>{escape(one)}</th>" for one in _heads(rows)),
        "runs": "\n".join(map(_run, rows)),
        "pictures": "\n".join(_pictures(row) for row in rows if row["sheets"])
        or "<p>The runs have drawn none (pictures.every_n_steps=0, or too few steps).</p>",
        "data": _script_data({"runs": [_plotted(row) for row in rows], "attributes": ATTRIBUTES}),
    }
    # In one pass: the inserted text may contain such a mark itself.
    text = re.sub("<!-- ([a-z]+) -->", lambda mark: content[mark[1]], _template())
    file = output / PAGE_FILE
    replace_file(file, lambda opened: opened.write(text.encode("utf-8", "replace")))
    return file


def run_rows(
    output: Path, results: Results, runs: pd.DataFrame, without_result: Sequence[Path]
) -> list[dict[str, Any]]:
    """The content of the page for every run: texts, numbers, curves and sheets."""
    folders = [file.parent for file in results] + list(without_result)
    names = run_names(folders)
    rows: list[dict[str, Any]] = []
    for file, frame in zip(results, runs.to_dict("records"), strict=True):
        row: dict[str, Any] = {name: _text(frame[name]) for name in ATTRIBUTES}
        row |= {name: frame[name] for name in NUMBERS}
        history = results[file].history
        row |= {"status": frame["status"], "error": frame["error"], "history": history}
        row["lower_bound"] = frame["ap_is_lower_bound"]
        rows.append(row)
    nothing: dict[str, Any] = dict.fromkeys(ATTRIBUTES, "-")
    nothing |= dict.fromkeys(NUMBERS, math.nan)
    nothing |= {"status": UNFINISHED, "error": "", "history": [], "lower_bound": False}
    rows += [nothing | _configured(folder) for folder in without_result]
    shorter = short_names(names)
    for row, folder, name, short in zip(rows, folders, names, shorter, strict=True):
        row["name"], row["short"], row["href"] = name, short, address(folder, output)
        row["curves"] = read_curves(folder, row.pop("history"))
        sheets = {kind: sorted((folder / "pictures").glob(p)) for kind, p in SHEETS.items()}
        row["sheets"] = {
            kind: (found[-1], address(found[-1], output)) for kind, found in sheets.items() if found
        }
    return rows


def run_names(folders: Sequence[Path]) -> list[str]:
    """The paths of run directories without their common part; the name of a single one."""
    if not folders:
        return []
    resolved = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath([folder.parent for folder in resolved]))
    return [folder.relative_to(common).as_posix() for folder in resolved]


def short_names(names: Sequence[str], longest: int = 40) -> list[str]:
    """Names without their common parts, if one is longer than ``longest`` characters.

    A sweep names its runs by their options, ``max_steps-600_seed-0_tau-0.5``; parts between two
    ``_`` that every name has are left out, and an ellipsis stands for them.
    """
    if len(names) < 2 or max(map(len, names)) <= longest:
        return list(names)
    common = set.intersection(*(set(name.split("_")) for name in names))
    shorter = []
    for name in names:
        parts = [None if part in common else part for part in name.split("_")]
        kept = [p or "…" for n, p in enumerate(parts) if p or n == 0 or parts[n - 1]]
        shorter.append("_".join(kept))
    return shorter if len(set(shorter)) == len(set(names)) else list(names)


def address(path: Path, output: Path) -> str:
    """A relative address of a file or folder for a page in ``output``."""
    relative = Path(os.path.relpath(path.resolve(), output.resolve())).as_posix()
    # A first part with a colon would be a scheme.
    relative = relative if relative.startswith(".") else f"./{relative}"
    return quote(os.fsencode(relative))  # a name need not be UTF-8


def _configured(folder: Path) -> dict[str, str]:
    """Seed and threshold of a run without a result, from its options."""
    try:
        options = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        found = {"seed": options["seed"], "threshold": options["method"].get("score_threshold")}
    except (yaml.YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # half a file of a run that was killed
    return {name: str(value) for name, value in found.items() if value is not None}


def thumbnail(file: Path) -> str | None:
    """A small copy of a picture as a data URL; None if the file is not a picture."""
    try:
        with Image.open(file) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # half a file of a run that was killed; the page says so
    small.thumbnail((THUMBNAIL, 4 * THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# -- parts of the page -------------------------------------------------------------------


def _template() -> str:
    parts = files("comining.reports") / "page"
    page = (parts / "report.html").read_text(encoding="utf-8")
    for mark, name in (("/* style */", "report.css"), ("/* script */", "report.js")):
        page = page.replace(mark, "\n" + (parts / name).read_text(encoding="utf-8"))
    return page


def _script_data(content: Any) -> str:
    """JSON that cannot close the script element that contains it."""
    return json.dumps(content, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")


def _counts(runs: pd.DataFrame, without_result: Sequence[Path]) -> str:
    counts = {**runs["status"].value_counts().to_dict(), UNFINISHED: len(without_result)}
    known = [f"{counts[one]} {one}" for one in (*STATUSES, UNFINISHED) if counts.get(one)]
    return f"{len(runs) + len(without_result)} runs: {', '.join(known) or 'none'}"


def _text(value: Any) -> str:
    return "-" if pd.isna(value) else str(value)


def _heads(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    numbers = [head for head, _ in NUMBERS.values()]
    return ["run", "status", *ATTRIBUTES.values(), *numbers]


def _run(row: Mapping[str, Any]) -> str:
    """A row of the table of runs."""
    link = _link(row)
    error = f'<div class="error">{escape(row["error"])}</div>' if row["error"] else ""
    status = f'<span class="status {row["status"].split()[0]}">{escape(row["status"])}</span>'
    cells = [f'<th scope="row" class="name"><span class="key"></span>{link}{error}</th>']
    cells += [f"<td>{status}</td>"]
    cells += [f"<td>{escape(row[name])}</td>" for name in ATTRIBUTES]
    for name, (_, form) in NUMBERS.items():
        mark = LOWER_BOUND if name == "AP" and row["lower_bound"] else ""
        text = number(row[name], form)
        cells.append(f'<td class="number">{escape(mark if text != "-" else "")}{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _link(row: Mapping[str, Any]) -> str:
    """A link to the directory of a run."""
    href, title, words = (escape(row[name]) for name in ("href", "name", "short"))
    return f'<a href="{href}/" title="{title}">{words}</a>'


def _plotted(row: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a run for the script."""
    names = ("status", *ATTRIBUTES, "curves")
    return {"name": row["short"], **{name: row[name] for name in names}}


def _pictures(row: Mapping[str, Any]) -> str:
    kind, (file, link) = next(iter(row["sheets"].items()))
    source = thumbnail(file)
    shown = (
        f'<img loading="lazy" src="{source}" alt="{escape(kind)}, {escape(row["name"])}">'
        if source
        else f'<span class="unreadable">{escape(file.name)} cannot be read</span>'
    )
    links = " · ".join(
        f'<a href="{escape(one)}">{escape(kind)}</a>' for kind, (_, one) in row["sheets"].items()
    )
    caption = f"{_link(row)}<br>{links}"
    return (
        f'<figure><a class="sheet" href="{escape(link)}">{shown}</a>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(result_table: ResultTable) -> str:
    """A table of results with the numbers of the paper next to ours."""
    ours, papers, best = result_table.texts()
    labels = [result_table.layout.labels.get(row, row) for row in result_table.rows]
    two_rows = len(papers.columns) > 0  # of heads
    spans, heads = [f"<th{' rowspan=2' * two_rows}></th>"], []
    for column in ours.columns:
        with_paper = column in papers.columns
        spans.append(f"<th colspan={1 + with_paper}>{escape(str(column))}</th>")
        heads += ["<th>ours</th>", *(["<th class='paper'>paper</th>"] if with_paper else [])]
    second = f"<tr>{''.join(heads)}</tr>" if two_rows else ""
    lines = []
    for row, label in zip(result_table.rows, labels, strict=True):
        cells = [f"<th scope='row'>{escape(str(label))}</th>"]
        for column in ours.columns:
            text = escape(ours.loc[row, column])
            cells.append(f"<td>{f'<b>{text}</b>' if (row, column) in best else text}</td>")
            if column in papers.columns:
                cells.append(f"<td class='paper'>{escape(papers.loc[row, column])}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(
        re.sub("`(.*)`", r"<code>\1</code>", f"<p class='note'>{escape(note)}</p>")
        for note in result_table.notes()
    )
    if any(text.startswith(LOWER_BOUND) for text in ours.to_numpy().ravel()):
        notes += (
            f"<p class='note'>{escape(LOWER_BOUND)}: a lower bound, because objects may be missing "
            "in the annotations; report.md has the recall of what is annotated.</p>"
        )
    return (
        f"<h3>{escape(result_table.title)}</h3><p class='note'>{escape(result_table.kind)}"
        f"</p><div class='scroll' tabindex='0'><table class='results'><thead><tr>{''.join(spans)}"
        f"</tr>{second}</thead><tbody>{''.join(lines)}</tbody></table></div>{notes}"
    )
