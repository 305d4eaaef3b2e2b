"""The W&B workspace: the sections of :mod:`comining.tracking.panels` as W&B shows them.

Built with the package wandb-workspaces, which is imported only when it is used.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comining.errors import ConfigError, DataError
from comining.runs.files import replace_file
from comining.runs.result import find_files
from comining.tracking.panels import SECTIONS, Panel, Section, sections_of
from comining.tracking.wandb_run import STEP

NAME = "comining: pseudo-labels"
# Top-level keys of the configuration by which runs are grouped and compared; runs that differ only
# in the seed share all but the last.
COMPARED = ("method_name", "sparsity_name", "score_threshold", "seed")
# Figures of the summary that the table of runs and the plots over all runs show.
SUMMARY = ("best/AP", "final/AP", "final/mining/pseudo_labels_per_image")
MAX_RUNS = 100  # drawn in a panel; W&B draws 10 unless told otherwise


def build_workspace(project: str, entity: str | None, sections: Sequence[Section]) -> Any:
    """The workspace as an object of wandb-workspaces; needs neither key nor network.

    Args:
        entity: user or team; None if only the JSON is needed.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    ws, _ = _packages()
    groups = [ws.Metric("Group"), *(ws.Config(name) for name in COMPARED[:-1])]
    columns = [
        *(f"config:{name}.value" for name in COMPARED),
        *(f"summary:{name}" for name in SUMMARY),
    ]
    return ws.Workspace(
        entity=entity or "",
        project=project,
        name=NAME,
        sections=[_comparison(), *(_section(one) for one in sections)],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MAX_RUNS),
        runset_settings=ws.RunsetSettings(groupby=groups, pinned_columns=columns),
    )


def workspace_json(workspace: Any) -> str:
    """The workspace as W&B stores it."""
    text: str = workspace._to_model().model_dump_json(by_alias=True, indent=1)
    return text + "\n"


def workspace_from_json(text: str) -> Any:
    """Parse the output of :func:`workspace_json`."""
    ws, internal = _packages()
    return ws.Workspace._from_model(internal.View.model_validate_json(text))


def write_workspace(workspace: Any, file: Path) -> None:
    """Write the workspace as JSON.

    Raises:
        DataError: the file exists.
        OSError: it cannot be written.
    """
    if file.exists() or file.is_symlink():
        raise DataError(f"{file}: already exists; nothing is overwritten")
    text = workspace_json(workspace)
    replace_file(file, lambda opened: opened.write(text.encode()))


def save_workspace(project: str, entity: str | None, sections: Sequence[Section]) -> str:
    """Save the workspace as a new view of the project and return its address.

    Args:
        entity: user or team; None for the account's own.

    Raises:
        ConfigError: wandb-workspaces or a key is missing, or W&B refuses or cannot be reached.
    """
    import wandb

    _packages()
    try:
        if not wandb.login(prompt=False):
            raise ConfigError(
                "saving a dashboard needs an account: run `wandb login` or set WANDB_API_KEY; "
                "--json FILE writes the dashboard without one"
            )
        entity = entity or wandb.Api().default_entity
        saved = build_workspace(project, entity, sections).save()
        return str(saved.url)
    except ConfigError:
        raise
    except (wandb.Error, OSError, ValueError) as error:
        raise ConfigError(f"W&B: {' '.join(str(error).split())}") from error


def dashboard_sections(folders: Sequence[Path]) -> tuple[Section, ...]:
    """All sections, or only those with figures that the given runs have logged.

    Raises:
        DataError: a folder does not exist, or holds no run.
    """
    return sections_of(logged_figures(folders)) if folders else SECTIONS


def logged_figures(folders: Sequence[Path]) -> set[str]:
    """The names of all figures in the ``metrics.csv`` files of folders and all folders below them.

    Raises:
        DataError: a folder does not exist, or there is no such file.
    """
    names: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such directory")
        for path in find_files(folder, "metrics.csv"):
            with path.open(newline="", encoding="utf-8") as lines:
                names.update(next(csv.reader(lines), []))
    if not names:
        raise DataError(f"{', '.join(map(str, folders))}: no metrics.csv of a run below it")
    return names


def _packages() -> tuple[Any, Any]:
    """wandb_workspaces.workspaces and its internal models."""
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.workspaces import internal
    except ImportError as error:
        raise ConfigError(
            f'a dashboard needs wandb-workspaces: pip install -e ".[dashboard]" ({error})'
        ) from error
    return workspaces, internal


def _comparison() -> Any:
    """The comparison over all runs: AP by threshold, options against results, differences."""
    from wandb_workspaces.reports import v2 as wr

    ws, _ = _packages()
    options = [wr.ParallelCoordinatesPlotColumn(wr.Config(name)) for name in COMPARED]
    results = [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(name)) for name in SUMMARY]
    panels = [
        wr.ScatterPlot(
            title="AP by score threshold",
            x=wr.Config("score_threshold"), y=wr.SummaryMetric("final/AP"),
        ),
        wr.ParallelCoordinatesPlot(title="Options and results", columns=[*options, *results]),
        wr.RunComparer(diff_only="split"),
    ]  # fmt: skip
    return ws.Section("Runs compared", panels=panels, is_open=True)


def _section(section: Section) -> Any:
    from wandb_workspaces.reports import v2 as wr

    ws, _ = _packages()
    panels = [_line_plot(panel) for panel in section.panels]
    panels += [wr.MediaBrowser(title=key, media_keys=[key]) for key in section.pictures]
    return ws.Section(section.title, panels=panels, is_open=True)


def _line_plot(panel: Panel) -> Any:
    from wandb_workspaces.reports import v2 as wr

    names = [one for one in panel.figures if one == re.escape(one)]
    patterns = [f"^{one}$" for one in panel.figures if one not in names]
    return wr.LinePlot(
        title=panel.title, x=STEP, y=names, metric_regex="|".join(patterns) or None,
        plot_type="stacked-area" if panel.stacked else None,
        range_y=(0, 1) if panel.stacked else (None, None),
    )  # fmt: skip
