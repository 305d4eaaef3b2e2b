"""The tables of the paper (Wang et al., AAAI 2021, COCO val2017): layout and numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Layout:
    """A table of the paper: its layout and its numbers.

    Args:
        row: the column of :func:`~comining.reports.records.runs_frame` that names the rows.
        by_method: True if the columns are methods and the numbers AP; else the columns are metrics.
        labels: the label of each row.
        numbers: a row and a column for each of the paper's, as printed there.
    """

    title: str
    row: str
    by_method: bool
    labels: dict[str, str]
    numbers: pd.DataFrame


def _layout(title: str, row: str, text: str, by_method: bool = False) -> Layout:
    """Args: text: a table whose columns are at least two blanks apart: row, label, numbers."""
    head, *rows = (re.split(r"\s{2,}", line.strip()) for line in text.strip().splitlines())
    table = pd.DataFrame(rows, columns=pd.Index(head)).set_index("row")
    labels = dict(zip(table.index, table.pop("label")))
    return Layout(title, row, by_method, labels, table)


LAYOUTS = {
    "table1": _layout("Table 1: RetinaNet, AP", "sparsity", """
        row      label    original  augmented  joint  comining
        full     Full     36.0      35.4       36.4   36.8
        easy     Easy     33.4      32.9       33.8   35.4
        hard     Hard     30.4      30.8       30.6   31.8
        extreme  Extreme  20.9      21.4       21.2   23.0
        """, by_method=True),
    "table2": _layout("Table 2: modules, hard set", "method", """
        row          label            AP    AP50  AP75
        original     neither          30.4  49.4  32.0
        self_mining  co-generation    30.9  49.3  32.6
        joint        Siamese network  30.6  49.3  32.5
        comining     both             31.8  50.3  33.7
        """),
    "table3": _layout("Table 3: score thresholds, hard set", "threshold", """
        row  label  AP
        0.4  0.4    NaN
        0.5  0.5    30.6
        0.6  0.6    31.8
        0.7  0.7    30.7
        0.8  0.8    30.7
        """),
    "table4": _layout("Table 4: second views, hard set", "second_view", """
        row       label     AP    AP50  AP75  APs   APm   APl
        baseline  baseline  30.4  49.4  32.0  15.8  32.6  41.2
        none      w/o aug   30.6  48.4  32.4  15.5  32.4  41.7
        blur      blur      31.2  49.4  33.2  15.7  33.4  42.4
        color     color     31.8  50.3  33.7  16.2  34.0  43.3
        """),
    "table5": _layout("Table 5: FCOS, AP", "sparsity", """
        row      label    original  augmented  joint  comining
        full     Full     38.4      37.8       39.1   39.3
        easy     Easy     36.3      35.7       36.8   37.6
        hard     Hard     33.2      33.5       33.5   34.4
        extreme  Extreme  22.1      22.3       22.8   23.1
        """, by_method=True),
    "table6": _layout("Table 6: baselines, COCO-50miss", "method", """
        row                       label          AP    AP50  AP75  APs   APm   APl
        original                  baseline       23.7  40.6  33.5  -     -     -
        pseudo_label              Pseudo label   27.5  46.3  34.5  15.1  33.2  41.7
        part_aware                Part-aware     28.4  46.9  35.1  15.3  33.6  42.0
        soft_sampling             Soft Sampling  -     -     -     -     -     -
        background_recalibration  BRL            32.7  50.8  35.3  -     -     -
        comining                  Co-mining      33.9  53.0  36.1  18.7  36.8  45.7
        """),
}  # fmt: skip
