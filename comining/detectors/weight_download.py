"""Weights that torchvision downloads, loaded without running any code from the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from comining.errors import ConfigError

# Where torchvision keeps downloads, and what to do if it cannot download.
DOWNLOADS = "$TORCH_HOME/hub/checkpoints (default ~/.cache/torch/hub/checkpoints)"
WHERE_TO_PUT = f"Fetch that file on a machine with a network and put it into {DOWNLOADS}"


def load_download(
    load: Callable[[Mapping[str, Tensor]], object],
    weights: WeightsEnum,
    option: str,
    *,
    progress: bool = True,
    otherwise: str = "",
) -> None:
    """Fetch a weight set of torchvision, once, and load it.

    torchvision's builders would run code from a file that is not what it should be.

    Args:
        load: takes the state dict.
        weights: the set.
        option: ``name=value``, for the error.
        progress: show a progress bar of the download.
        otherwise: what else can be done without the download, for the error.

    Raises:
        ConfigError: the file is neither cached nor reachable, or does not hold the weights.
    """
    url = weights.url
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        load(weights.get_state_dict(progress=progress, check_hash=True, weights_only=True))
    except (OSError, HTTPException) as error:  # of the connection, or of the download folder
        raise ConfigError(
            f"cannot download {option} from {url} ({error}). {WHERE_TO_PUT}{otherwise}"
        ) from error
    except Exception as error:  # broken bytes may raise anything
        reason = "it is damaged, or holds more than tensors"
        if isinstance(error, RuntimeError):
            reason = next(iter(str(error).splitlines()), reason)
        # torch's own message advises to load it anyway.
        if cached.exists():
            raise ConfigError(
                f"{option}: {cached} does not hold its weights ({reason}); delete that file"
            ) from error
        raise ConfigError(
            f"cannot download {option}: what {url} sends does not hold its weights ({reason}). "
            f"{WHERE_TO_PUT}{otherwise}"
        ) from error
