"""``python -m comining.report DIR...``: tables and plots of the runs below some directories."""

from comining.reports.tables import main

if __name__ == "__main__":
    main()
