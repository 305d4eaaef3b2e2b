"""Find missing boxes and review them: ``python -m comining.complete``.

``propose RUN --out DIR`` trains detectors by the options of a run, each without a part of the
images, and proposes what they find in the images that they have not seen, each with a probability.
``review DIR`` writes the page on which a person decides on the proposals of a folder. ``apply DIR
decisions.json --out annotations.json`` turns accepted proposals into annotations and says which
classes are now complete. ``export DIR`` writes annotations and proposals for other programs. See
docs/completion.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from comining.completion.completed_set import check_new, write_coco
from comining.completion.decisions import Decisions
from comining.completion.proposal_exports import (
    EXPORTS,
    ExportOptions,
    check_outputs,
    write_exports,
)
from comining.completion.proposal_folder import PROPOSALS_FILE, ProposalFolder
from comining.completion.proposals import with_precision, with_probability
from comining.completion.review_order import ORDERS, in_order
from comining.completion.review_page import write_review_page
from comining.completion.reviewed_set import reviewed_set
from comining.completion.tool_files import LOCAL_FILES
from comining.errors import ConfigError, UserError, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """The commands; returns the exit code: 2 for bad input or an output that is not writable."""
    parser = argparse.ArgumentParser(prog="python -m comining.complete", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (words, add_options, run) in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words)
        if name != "propose":
            command.add_argument("folder", type=Path, metavar="DIR", help="holds proposals.json")
        add_options(command)
        command.set_defaults(run_command=run)
    given = parser.parse_args(_in_order(sys.argv[1:] if arguments is None else arguments))
    run_command: Run = given.run_command
    try:
        run_command(given)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _in_order(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``propose`` with its run and options ahead of the flags.

    Options of ``train.py`` may also follow the flags, where argparse takes no further ones.
    """
    if [*arguments[:1]] != ["propose"]:
        return list(arguments)
    positional: list[str] = []
    flags: list[str] = []
    for before, one in itertools.pairwise(arguments):
        value_of_flag = before.startswith("--") and "=" not in before and before != "--quiet"
        (flags if value_of_flag or one.startswith("-") else positional).append(one)
    return ["propose", *positional, *flags]


def _propose_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="+", metavar="RUN",
        help="a run directory, optionally with options to change; or options of train.py alone",
    )  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--folds", type=_parts, default=2, help="number of parts of the images; default: 2"
    )
    parser.add_argument("--launcher", help="choice of conf/launcher, to train several at once")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _propose(given: argparse.Namespace) -> None:
    # Imported here because the other commands need no Lightning, which takes seconds.
    from comining.completion.cross_fitting import Recipe, train_folds, trained_configuration
    from comining.completion.propose import find, read_data, training_set, write_folder
    from comining.completion.training_options import training_options

    progress = not given.quiet
    recipe = Recipe.of(given.run)
    checkpoints = train_folds(recipe, given.out, given.folds, given.launcher, progress)
    config, folder = trained_configuration(given.out)
    with contextlib.chdir(folder):
        data = read_data(config)
        train = training_set(data)
        found = find(train, checkpoints, progress)
    training = training_options(given.out, config, folder, data)
    proposals, rates = write_folder(given.out, train, config["data"], found, folder, training)
    for name, one in rates.items():
        low, high = one.interval
        print(f"{name}: about {one.rate:.0%} annotated ({low:.0%} to {high:.0%})")
    if without := [name for name in train.annotations.categories.names if name not in rates]:
        print(
            f"no estimate and no proposals for {', '.join(without)}: the detectors find too few of "
            "their annotated objects, or far too many others; longer training may help"
        )
    expected = sum(one.probability for one in proposals)
    print(f"{len(proposals)} proposals, of which about {expected:.0f} are objects")
    print(f"written: {given.out / PROPOSALS_FILE}")
    print(f"next: python -m comining.complete review {given.out}")


def _judge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truth", type=Path, metavar="FILE",
        help="a COCO file with all objects; default: the annotations that sparsity erased",
    )  # fmt: skip
    parser.add_argument(
        "--decisions", nargs="+", type=_count, default=[], metavar="N",
        help="train after the first N decisions of a reviewer without mistakes, and after none",
    )  # fmt: skip
    parser.add_argument(
        "--orders", nargs="+", choices=ORDERS, default=list(ORDERS),
        help="review orders to compare; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--correct-boxes", action="store_true",
        help="the reviewer gives each object its true box; default: accepts the proposed one",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--launcher", help="choice of conf/launcher, to train several at once")


def _judge(given: argparse.Namespace) -> None:
    from comining.completion.cross_fitting import trained_configuration
    from comining.completion.judge import Truth, judge, judgement_lines
    from comining.completion.propose import read_data, training_set
    from comining.completion.reliability import draw_reliability
    from comining.completion.rounds import RoundPlan, judge_rounds, round_lines

    if given.correct_boxes and not given.decisions:
        raise ConfigError("--correct-boxes needs --decisions: it is about training after a review")
    folder = ProposalFolder.read(given.folder)
    if given.truth is None or given.decisions:
        config, started_in = trained_configuration(given.folder)
        with contextlib.chdir(started_in):
            data = read_data(config)
    if given.truth is not None:
        truth = Truth.of_file(given.truth, folder)
    else:
        truth = Truth.of_training(training_set(data))
    judged = judge(folder, truth)
    lines = judgement_lines(judged)
    if given.decisions:
        plan = RoundPlan(
            sorted({*given.decisions}), given.orders, given.correct_boxes, sorted({*given.seeds}),
            given.launcher,
        )  # fmt: skip
        split, rounds = judge_rounds(folder, truth, config, started_in, data, plan)
        lines += round_lines(split, rounds, given.correct_boxes)
    print("\n".join(lines))
    file = given.folder / "judgement.md"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for written in [file, *draw_reliability(given.folder / "reliability.png", judged)]:
        print(f"written: {written}")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _parts(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{text} must be at least 2")
    return value


def _review_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--order", choices=ORDERS, help="of the proposals; default: that of proposals.json"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _review(given: argparse.Namespace) -> None:
    folder = ProposalFolder.read(given.folder)
    if given.order is not None:
        folder = replace(folder, proposals=in_order(folder.proposals, given.order))
    page = write_review_page(folder, progress=not given.quiet)
    print(f"{len(folder.proposals)} proposals; open in a browser: {page}")


def _apply_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "decisions", nargs="+", type=Path, help="decisions.json; several if people shared the work"
    )
    parser.add_argument("--out", required=True, type=Path, help="the COCO file to write")


def _apply(given: argparse.Namespace) -> None:
    check_new(given.out)
    folder = ProposalFolder.read(given.folder)
    reviewed = reviewed_set(folder, Decisions.read(given.decisions, folder))
    write_coco(given.out, reviewed.content)
    for what, count in reviewed.counts.items():
        print(f"{what}: {count}")
    print(f"written: {given.out}")
    print(_training_line(folder, given.out, "fields"))


def _training_line(folder: ProposalFolder, annotations: Path, annotated: str) -> str:
    """The command that trains on completed annotations like the run that the proposals are from."""
    source = folder.source
    options = [*source.training] or ["data=custom", "sparsity=full"]
    if not source.training:
        options += [f"data.exif={source.exif}"] if source.exif != "ignore" else []
        options += [f"data.bit_depth={source.bit_depth}"] if source.bit_depth != "auto" else []
    options += [
        f"data.train_annotations={annotations.absolute()}",
        f"data.train_images={folder.images.absolute()}", f"data.annotated={annotated}",
    ]  # fmt: skip
    return f"train with: python train.py {shlex.join(options)}"


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", nargs="+", choices=sorted(EXPORTS), default=["coco"], help="default: coco"
    )
    cut = parser.add_mutually_exclusive_group(required=True)
    cut.add_argument(
        "--precision", type=_fraction, metavar="P",
        help="the largest set of proposals whose mean probability is at least P",
    )  # fmt: skip
    cut.add_argument(
        "--probability", type=_fraction, metavar="P", help="proposals with at least P; 0 is all"
    )
    parser.add_argument("--out", type=Path, help="folder to write into; default: DIR")
    parser.add_argument(
        "--pictures",
        choices=("copy", "link", "none"),
        default="copy",
        help="pictures of a YOLO set",
    )
    parser.add_argument(
        "--address", default=LOCAL_FILES,
        help=f"prefix of file names for Label Studio; default: {LOCAL_FILES}",
    )  # fmt: skip


def _export(given: argparse.Namespace) -> None:
    output = given.out or given.folder
    kinds = list(dict.fromkeys(given.to))
    check_outputs(kinds, output)
    folder = ProposalFolder.read(given.folder)
    if given.precision is not None:
        chosen = with_precision(folder.proposals, given.precision)
    else:
        chosen = with_probability(folder.proposals, given.probability)
    options = ExportOptions(given.pictures, given.address)
    written = write_exports(folder, chosen, kinds, output, options)
    print(f"{len(chosen)} of {len(folder.proposals)} proposals taken")
    if folder.proposals and not chosen:
        most = max(proposal.probability for proposal in folder.proposals)
        print(f"the highest probability of a proposal is {most:.2f}")
    for path, losses in written.items():
        print(f"written: {path}")
        for loss in losses:
            print(f"  not kept: {loss}")
    if "coco" in kinds:
        print(_training_line(folder, output / EXPORTS["coco"][1], folder.source.annotated))


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to 1")
    return value


Run = Callable[[argparse.Namespace], None]
# For every command: what it does, its options besides DIR, and the function that runs it.
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Run]] = {
    "propose": ("find the boxes that may be missing", _propose_options, _propose),
    "review": ("write the page on which a person decides on proposals", _review_options, _review),
    "judge": ("measure the quality of proposals where the truth is known", _judge_options, _judge),
    "apply": ("turn accepted proposals into annotations", _apply_options, _apply),
    "export": ("write annotations and proposals for other programs", _export_options, _export),
}


if __name__ == "__main__":
    sys.exit(main())
