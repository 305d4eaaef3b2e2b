"""Writing the detections in pictures, also if prediction stops early."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from PIL import Image
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from comining.errors import DataError
from comining.evaluation.picture_files import PictureFiles
from comining.evaluation.picture_names import DrawingNames, json_name, printable
from comining.evaluation.predict import PicturePrediction, reason
from comining.runs.directory import RunDirectory
from comining.runs.files import write_json
from comining.runs.row_file import RowFile
from comining.runs.signals import SIGNALS, Interrupted

log = logging.getLogger(__name__)

LOGGED = 20  # skipped pictures that get a line of their own; skipped.json has all
SUMMARISED = 5  # names in the last lines


class PredictionFiles:
    """The files that ``evaluate.py images=`` writes; see docs/prediction.md.

    ``pictures/``, the drawings; ``coco_results.json``, the detections; ``pictures.json``, every
    picture that was read, with its size, the names of the detected classes and its drawing;
    ``skipped.json``, the others, with the reason. A context manager: however it exits, the files
    hold what was added before. Nothing is written if no picture was read.

    Args:
        directory: of this run; marked as begun by the first picture.
        files: the files that were found, for ``skipped.json``.
        score_threshold: that of the drawings, for the summary.
    """

    def __init__(self, directory: RunDirectory, files: PictureFiles, score_threshold: float):
        self.directory = directory
        self.files = files
        self.score_threshold = score_threshold
        self.looked_at = 0
        self.images = 0
        self.detections = 0
        self.all_below = 0  # pictures in which no detection exceeds the threshold
        self.skipped: list[PurePath] = []
        self.not_drawn: list[PurePath] = []
        self.paged = 0  # pictures with several pages or frames
        self._first_paged = ""  # in words
        self._reasons: list[dict[str, Any]] = []
        self._open_files: tuple[RowFile, RowFile] | None = None
        self._names = DrawingNames(self._drawings)

    @property
    def results(self) -> Path:
        """The file of the detections."""
        return self.directory.path / "coco_results.json"

    @property
    def _drawings(self) -> Path:
        return self.directory.path / "pictures"

    def add(self, prediction: PicturePrediction) -> None:
        """Write one picture's detections and its drawing.

        A drawing that cannot be written is reported and counted; the detections are kept.

        Raises:
            ConfigError: the detections cannot be written.
        """
        if prediction.rows is not None:
            results, pictures = self._open()
            drawing = None
            if prediction.drawing is not None:
                try:
                    drawing = self._draw(prediction.name, prediction.drawing)
                except Exception as error:  # the next picture may succeed
                    prediction.problem = reason(error, self._drawings)
            height, width = prediction.size
            results.append(prediction.rows)
            pictures.append(
                [
                    {
                        **_identity(prediction),
                        "width": width,
                        "height": height,
                        "detections": len(prediction.rows),
                        "categories": [
                            {"id": number, "name": name}
                            for number, name in prediction.categories.items()
                        ],
                        "drawing": None if drawing is None else json_name("pictures" / drawing),
                    }
                ]
            )
            if prediction.pages > 1:
                name = printable(str(prediction.name))
                self._first_paged = (
                    self._first_paged or f"{name} is the first of {prediction.pages}"
                )
                self.paged += 1
            self.images += 1
            self.detections += len(prediction.rows)
            self.all_below += prediction.exceeding == 0
        self.looked_at += 1
        if prediction.problem is not None:
            self._name_problem(prediction, prediction.problem)

    def _open(self) -> tuple[RowFile, RowFile]:
        """The rows of detections and of pictures; created at the first picture that was read."""
        if self._open_files is None:
            self.directory.begin()
            pictures = self.directory.path / "pictures.json"
            self._open_files = (RowFile(self.results), RowFile(pictures))
        return self._open_files

    def _draw(self, name: PurePath, drawing: Image.Image) -> PurePath:
        """Write a drawing, and return its name in the folder of the drawings."""
        content = io.BytesIO()
        drawing.save(content, "PNG")
        target = self._names.plain(name)
        try:
            self._write_new(target, content.getvalue())
        except OSError:
            # The file system refuses the name, or confuses it with that of another file. (If the
            # disk is full, the second attempt reports it.)
            target = self._names.hashed(name)
            self._write_new(target, content.getvalue())
        return target

    def _write_new(self, name: PurePath, content: bytes) -> None:
        target = self._drawings / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:  # never overwrite the drawing of another picture
            try:
                file.write(content)
                file.flush()
            except BaseException:
                target.unlink()
                raise

    def _name_problem(self, prediction: PicturePrediction, problem: str) -> None:
        names, what, why = self.skipped, "skipped", problem
        if prediction.rows is not None:
            names, what, why = self.not_drawn, "not drawn", f"not drawn: {problem}"
        names.append(prediction.name)
        self._reasons.append({**_identity(prediction), "reason": why})
        if len(self._reasons) <= LOGGED:
            log.warning("%s: %s: %s", what, printable(str(prediction.name)), problem)
        elif len(self._reasons) == LOGGED + 1:
            log.warning("further skipped pictures are listed in skipped.json only")

    def __enter__(self) -> PredictionFiles:
        return self

    def __exit__(self, *error: object) -> None:
        if self._open_files is None:
            return
        for rows in self._open_files:
            rows.finish()
        passed_over = [
            {"file_name": json_name(name), "reason": why}
            for names, why in [
                *(
                    ([name], f"cannot be read: {why}")
                    for name, why in self.files.unreadable.items()
                ),
                *((names, f"cannot decode {kind}") for kind, names in self.files.foreign.items()),
                (self.files.broken, "broken link"),
            ]
            for name in names
        ]
        write_json(self.directory.path / "skipped.json", self._reasons + passed_over)

    def example(self) -> str:
        """The first skipped picture and its reason, to append to a message."""
        return next((f"; {one['file_name']}: {one['reason']}" for one in self._reasons), "")

    def summary(self) -> list[str]:
        """The lines printed at the end."""
        lines = [f"{self.images} images, {self.detections} detections"]
        lines.append(f"skipped: {len(self.skipped)} {_first(self.skipped)}".rstrip())
        if self.not_drawn:
            lines.append(f"not drawn: {len(self.not_drawn)} {_first(self.not_drawn)}")
        if self.all_below:
            lines.append(
                f"in {self.all_below} of {self.images} pictures no detection scores more than "
                f"{self.score_threshold:g} (score_threshold)"
            )
        if self.paged:
            lines.append(
                f"several pages or frames: {self.paged}, only the first is used: "
                f"{self._first_paged}"
            )
        if self.images:
            lines.append(
                "boxes are in pixels of the pictures as viewers show them (EXIF orientation "
                "applied)"
            )
            others = "pictures.json, skipped.json"
            lines.append(f"written: {self.results}, {others} and {self._drawings}")
        return lines


def write_predictions(
    predictions: Iterable[PicturePrediction],
    files: PictureFiles,
    directory: RunDirectory,
    *,
    score_threshold: float,
    progress: bool,
) -> PredictionFiles:
    """Write the output of :func:`comining.evaluation.predict.predict_pictures`; print a summary.

    A signal ends it after the current picture.

    Args:
        score_threshold: as it was there.
        progress: show a bar on a terminal, and elsewhere a line for every tenth of the pictures.

    Raises:
        Interrupted: by a signal, after the finished pictures are written.
        DataError: none of the pictures could be read.
        ConfigError: the detections cannot be written.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not where it is captured
        sys.stdout.reconfigure(errors="backslashreplace")  # terminals may lack characters
    count = len(files.pictures)
    print(f"{count} picture{'' if count == 1 else 's'} in {printable(str(files.folder))}")
    print("".join(f"{note}\n" for note in files.notes()), end="", flush=True)
    written = PredictionFiles(directory, files, score_threshold)
    try:
        with _stoppable(), written:
            for prediction in _shown(predictions, count, progress):
                written.add(prediction)
                if SIGNALS.received and written.looked_at < count:
                    raise Interrupted(SIGNALS.received)
    except (Interrupted, KeyboardInterrupt):
        print(f"interrupted after {written.looked_at} of {count} pictures", file=sys.stderr)
        print("\n".join(written.summary()), flush=True)
        raise
    if not written.images:
        where = f"images={printable(str(files.folder))}"
        raise DataError(f"{where}: none of {count} pictures could be read{written.example()}")
    print("\n".join(written.summary()), flush=True)
    return written


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Defer signals until a picture, or the final writing, is finished."""
    SIGNALS.deferred, SIGNALS.unit = True, "picture"
    try:
        yield
    finally:
        SIGNALS.deferred = False


def _shown(
    predictions: Iterable[PicturePrediction], count: int, progress: bool
) -> Iterator[PicturePrediction]:
    """The predictions, with the progress on standard output."""
    if progress and sys.stdout.isatty():
        with logging_redirect_tqdm():
            yield from tqdm(predictions, total=count, unit="image", file=sys.stdout)
        return
    for number, prediction in enumerate(predictions, start=1):
        yield prediction
        if progress and number % max(1, count // 10) == 0:
            print(f"picture={number}/{count}", flush=True)


def _identity(prediction: PicturePrediction) -> dict[str, Any]:
    return {"image_id": prediction.image_id, "file_name": json_name(prediction.name)}


def _first(names: list[PurePath]) -> str:
    shown = ", ".join(printable(str(name)) for name in names[:SUMMARISED])
    return shown if len(names) <= SUMMARISED else f"{shown}, ... (all in skipped.json)"
