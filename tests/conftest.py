"""One thread for each process of the suite, and for each that a test starts."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
