"""The evidence: ``RESULTS.md`` out of committed ``result.json`` files.

``python -m comining.study collect RUN ... --to results/bccd`` copies results of finished runs,
without the paths of the machine; ``python -m comining.study write results RESULTS.md`` writes the
page and, into ``results/plots``, its plots (they need ``pip install -e ".[report]"``). Every figure
comes from these files; a cell that has not been run is shown as a dash.
"""
