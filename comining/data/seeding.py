"""Random numbers that depend on their purpose, never on when they are drawn."""

import hashlib


def derive_seed(purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive_seed("flip", run_seed, position)``."""
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
