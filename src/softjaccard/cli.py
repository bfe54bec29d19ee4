"""The command `softjaccard`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import softjaccard
from softjaccard.errors import InputError, InputErrors

if TYPE_CHECKING:
    from softjaccard.evaluation.inference import InferenceSettings

_FIT_HELP = """\
`softjaccard recipes` lists what a recipe's name can be made of. Every setting can be changed behind it, for example:
  --data.root PATH                                where the data are
  --model.encoder_weights PATH                    pretrained weights of the encoder
  --model.loss softjaccard.CrossEntropyLoss       another loss
  --model.loss.region.gradient error_scaled       an option of the loss in the recipe
  --model.optimiser.learning_rate 1e-3
  --trainer.max_epochs 24
  --seed 1
  --checkpoint_every 500                          write the last checkpoint each 500 steps, too, not only after an epoch

Ignored pixels are -100 in every batch, whatever id the files have for them: leave a loss's ignore_index as it is.
Settings are listed by --print_config (behind the other options) and explained in Python by class, such as
help(softjaccard.training.SupervisedSegmentation), help(softjaccard.training.SmoothLabel), help(softjaccard.DiceLoss).
Classes of your own are found in the present folder and by PYTHONPATH.
"""

_PREDICT_HELP = """\
For the image a/b.jpg in an input folder, DIR gets masks/a/b.png with class ids (8-bit, or 16-bit with more than 256
classes), colours/a/b.png, with --probabilities probabilities/a/b.safetensors (float16, classes x height x width), and
for all images predict.json, which says how they were made and which class has which id and colour.

Windows and scales count from the size the network was trained on: with data.scale 0.5 in the run, images are halved
first, and the results brought back to the image's size. An image that cannot be read is named at the end, when the
others are done, and the exit code is 2.
"""


_TEST_HELP = """\
Settings of the run can be changed behind the options, such as --data.root PATH or --trainer.devices 1.

RUN gets test.json with all scores, and evaluation/test with what `softjaccard report` shows; the first decoding is the
main one. Windows and scales count from the size of the run's images, so from half of it with data.scale 0.5.
With a temperature, calibration and decodings are those of the logits over it, and --temperature fit takes the one with
the best likelihood on the validation images, predicted in the same way.
"""

_COMPARE_HELP = """\
GRID is a YAML file:

  title: Losses on drawn scenes
  recipe: scenes                   # or a YAML file; of all rows, or of a row
  settings: {trainer.max_epochs: 6}
  seeds: [0, 1, 2]                 # likewise
  baseline: cross-entropy          # the row that others are compared with (the first one)
  test: {checkpoint: best, split: test}
  scores: [mIoU_D, mIoU_I, ECE]    # columns of the table, by their names in test.json
  rows:
    cross-entropy: {settings: {model.loss: softjaccard.CrossEntropyLoss}}
    jaccard:
    student: {recipe: scenes+distillation-kl, settings: {model.teacher: {row: jaccard}}, seeds: [0]}

{row: NAME} or {row: NAME, seed: SEED} stands for the folder of that trained run, which is run before (without a seed,
the one with the same). Settings behind the options hold for all rows, such as --data.root PATH. A row's setting takes
the place of the grid's, and of those below it: with model.loss.region of its own, a row has no model.loss.region.form
of the grid.

DIR gets runs/ROW/SEED, results/ROW/SEED.json and .npz, which are small and all that the tables need, and table.md,
table.csv and differences.png. The same command goes on where it was stopped, and does only what is missing; so it does
when rows or seeds were added. With --rows and --seeds several machines can share a grid: a results/ROW/SEED.json and
.npz that another one made can be put beside one's own. The exit code is 2 if runs have failed.
"""

_DATA_HELP = """\
NAME is a data set that `softjaccard data list` shows, PATH where it is. Every image and mask is decoded, and each pixel
of each mask is compared with the values that the data set knows. The classes' shares of the pixels are printed, then
all that is wrong; if anything is, the exit code is 2. A part of a data set is in order: another number of images than
the official one is only a warning.

Settings of the data set go behind the options, such as --data.sbd PATH (voc), --data.fold 1 (deepglobe-land) or
--data.classes FILE (folder).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: As typed after `softjaccard`; by default the process's own.

    Returns:
        The exit code: 0; 2 after an error in what the user gave, which is told in one line on stderr; 130 after Ctrl-C.

    Raises:
        SystemExit: With 143, after SIGTERM in a training.
    """
    parser = _build_parser()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where a user's own losses, labels and methods may be
    known, settings = parser.parse_known_args(_join_settings(sys.argv[1:] if arguments is None else arguments))
    try:
        known.run(known, settings)
    except InputError as error:
        for told in error.messages if isinstance(error, InputErrors) else [str(error)]:
            # A worker process of a data loader hands its error over inside the text of a traceback.
            message = told.rpartition(f"{InputError.__qualname__}: ")[2]
            sys.stderr.write(f"{parser.prog} {known.command}: {' '.join(message.split())}\n")
        return 2
    except KeyboardInterrupt:
        hint = "; the same command goes on" if known.command == "compare" else ""
        sys.stderr.write(f"{parser.prog} {known.command}: stopped{hint}\n")
        return 130
    return 0


def _join_settings(arguments: Sequence[str]) -> list[str]:
    """Write `--data.root PATH` as `--data.root=PATH`, so that PATH is not taken for an argument of its own."""
    joined: list[str] = []
    for argument in arguments:
        waiting = (
            bool(joined)
            and re.fullmatch(r"--(seed|data|model|trainer|checkpoint_every)([.][^=]*)?", joined[-1]) is not None
        )
        if waiting and not argument.startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="softjaccard", description="Segmentation networks trained for the score they are judged by.")
    parser.add_argument("--version", action="version", version=f"softjaccard {softjaccard.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train three small networks on drawn scenes and compare them")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for the results (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    demo.add_argument("--steps", type=int, help="training steps of each network")
    demo.set_defaults(run=_demo)

    usage = "(--recipe NAME | --config FILE) [--output DIR] [--resume] [--SETTING VALUE ...]"
    fit = _add_command(commands, "fit", "train a network", usage, _FIT_HELP)
    fit.add_argument("--recipe", help="NAME+NAME+...: data, and if need be network, schedule, loss and method")
    fit.add_argument(
        "--config",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a YAML file with settings; wins over the recipe, and the last of several over the others",
    )
    fit.add_argument("--output", type=Path, help="the run's folder (runs/ and the recipe's or the last config's name)")
    fit.add_argument(
        "--resume", action="store_true", help="go on from the run's last checkpoint as if it had not stopped"
    )
    fit.set_defaults(run=_fit)

    recipes = _add_command(commands, "recipes", "list the parts that recipes are made of", "")
    recipes.set_defaults(run=_recipes)

    _add_test(commands)
    _add_predict(commands)
    what = "show what tests of one or more runs found, in one HTML file"
    report = _add_command(commands, "report", what, "RUN... [--split test|val] [--output FILE]")
    report.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="a run's folder; the first is what others are compared with"
    )
    report.add_argument("--split", choices=("test", "val"), default="test", help="what was tested (%(default)s)")
    report.add_argument("--output", type=Path, default=Path("report.html"), help="the HTML file (%(default)s)")
    report.set_defaults(run=_report)
    _add_compare(commands)
    _add_data(commands)
    return parser


def _add_command(
    commands: argparse._SubParsersAction[_Parser], name: str, what: str, usage: str, epilog: str | None = None
) -> _Parser:
    return commands.add_parser(
        name,
        help=what,
        usage=f"softjaccard {name} {usage}",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_test(commands: argparse._SubParsersAction[_Parser]) -> None:
    what = "score a trained network on the test images"
    test = _add_command(commands, "test", what, "RUN [options] [--SETTING VALUE ...]", _TEST_HELP)
    test.add_argument("output", metavar="RUN", type=Path, help="the run's folder")
    test.add_argument("--checkpoint", default="best", help="best (or last if there is none), last, or a file")
    test.add_argument("--split", choices=("test", "val"), default="test", help="which images (%(default)s)")
    _add_inference(test)
    test.add_argument(
        "--decoding",
        nargs="+",
        default=["argmax"],
        metavar="NAME",
        help="argmax (the default), rankseg-iou, rankseg-dice, or several to compare",
    )
    test.add_argument("--temperature", type=_temperature, default=1.0, help="fit, or a number to divide logits by (1)")
    test.set_defaults(run=_test)


def _add_data(commands: argparse._SubParsersAction[_Parser]) -> None:
    data = commands.add_parser("data", help="list the known data sets, or check every file of one")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="list the known data sets").set_defaults(run=_data_list)
    check = actions.add_parser(
        "check",
        help="check every file of a data set",
        usage="softjaccard data check NAME --root PATH [--split SPLIT ...] [--SETTING VALUE ...]",
        epilog=_DATA_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    check.add_argument("name", metavar="NAME", help="the data set")
    check.add_argument("--root", required=True, help="its folder")
    check.add_argument("--split", nargs="+", choices=("train", "val", "test"), default=[], help="which (all there are)")
    check.set_defaults(run=_data_check)


def _temperature(value: str) -> float | str:
    try:
        return value if value == "fit" else float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected fit or a number, got '{value}'") from error


def _add_inference(parser: argparse.ArgumentParser) -> None:
    """Add the options of `InferenceSettings`."""
    parser.add_argument(
        "--window", nargs=2, type=int, metavar=("H", "W"), help="slide a window of this size (the whole image at once)"
    )
    parser.add_argument("--overlap", type=float, default=1 / 3, help="share of a window in the next (a third)")
    parser.add_argument(
        "--scales", nargs="+", type=float, default=[1.0], help="average over these scales of the image (1)"
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")


def _inference(known: argparse.Namespace) -> InferenceSettings:
    from softjaccard.evaluation.inference import InferenceSettings

    window = (known.window[0], known.window[1]) if known.window else None
    return InferenceSettings(window, known.overlap, tuple(known.scales), known.flip)


def _add_predict(commands: argparse._SubParsersAction[_Parser]) -> None:
    what = "segment images with a trained network"
    predict = _add_command(commands, "predict", what, "RUN INPUT [INPUT ...] --output DIR [options]", _PREDICT_HELP)
    predict.add_argument("trained", metavar="RUN", type=Path, help="a run's folder, or a checkpoint file")
    predict.add_argument("inputs", metavar="INPUT", nargs="+", type=Path, help="an image, or a folder with images")
    predict.add_argument("--output", type=Path, required=True, help="folder for the results")
    predict.add_argument("--checkpoint", help="best (or last if there is none; the default), last, or a file")
    _add_inference(predict)
    predict.add_argument("--decoding", default="argmax", help="argmax, rankseg-iou or rankseg-dice (%(default)s)")
    predict.add_argument("--probabilities", action="store_true", help="write probabilities, too")
    predict.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (%(default)s: a GPU if there is one)")
    predict.add_argument("--overwrite", action="store_true", help="replace results that are there")
    predict.set_defaults(run=_predict)


def _add_compare(commands: argparse._SubParsersAction[_Parser]) -> None:
    what = "run a grid of recipes, settings and seeds, and compare the scores"
    compare = _add_command(commands, "compare", what, "GRID [options] [--SETTING VALUE ...]", _COMPARE_HELP)
    compare.add_argument("grid", metavar="GRID", type=Path, help="a YAML file")
    compare.add_argument("--output", metavar="DIR", type=Path, help="folder for it all (runs/ and the grid's name)")
    compare.add_argument("--jobs", type=int, metavar="N", help="runs at a time (1, or one for each device)")
    compare.add_argument(
        "--devices", nargs="+", default=[], metavar="NAME", help="cpu, or cuda:0 cuda:1 ..., shared out among runs"
    )
    compare.add_argument(
        "--again",
        nargs="+",
        choices=("failed", "changed"),
        default=[],
        help="run again what has failed, or replace what was run with other settings than the grid has now",
    )
    compare.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="run only these, and what they need")
    compare.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="run only these")
    only = compare.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="show what would be run")
    only.add_argument("--tables-only", action="store_true", help="make the tables from the results that are there")
    compare.set_defaults(run=_compare)


def _refuse(settings: Sequence[str], hint: str) -> None:
    """Raise an InputError if a command that takes no settings got any."""
    if settings:
        raise InputError(f"unknown arguments: {' '.join(settings)} ({hint})")


def _demo(known: argparse.Namespace, settings: list[str]) -> None:
    _refuse(settings, "see softjaccard demo --help")
    from softjaccard.demo import run_demo

    run_demo(known.output, known.seed, known.steps)


def _fit_configs(known: argparse.Namespace) -> list[Path | dict[str, Any]]:
    """Return the settings of the recipe, and the config files."""
    from softjaccard.training.recipes import load_recipe

    if not known.recipe and not known.config:
        raise InputError("--recipe or --config is missing: `softjaccard recipes` lists what recipes are made of.")
    configs = [path.expanduser() for path in known.config]
    missing = [path for path in configs if not path.is_file()]
    if missing:
        raise InputError(f"--config: there is no file {missing[0]} (recipes of the package go with --recipe).")
    return [*([load_recipe(known.recipe)] if known.recipe else []), *configs]


def _fit(known: argparse.Namespace, settings: list[str]) -> None:
    from softjaccard.training import run

    configs = _fit_configs(known)
    output = known.output or Path("runs") / (known.config[-1].stem if known.config else known.recipe)
    run.fit(output, configs, settings, resume=known.resume)


def _resolve_fit(arguments: Sequence[str]) -> dict[str, Any]:
    """Return every setting of a run, from what is typed after `softjaccard fit`."""
    from softjaccard.training import run

    known, settings = _build_parser().parse_known_args(["fit", *arguments])
    return run.resolve(_fit_configs(known), settings)


def _compare(known: argparse.Namespace, settings: list[str]) -> None:
    from softjaccard.evaluation import compare

    output = known.output or Path("runs") / known.grid.stem
    grid = compare.read_grid(known.grid, settings).part(known.rows, known.seeds)
    if known.tables_only:
        compare.remake_tables(grid, output, _resolve_fit)
    elif known.dry_run:
        compare.show_plan(grid, output, _resolve_fit, known.again)
    else:
        jobs = known.jobs if known.jobs is not None else max(1, len(known.devices))
        resources = compare.Resources(jobs, tuple(known.devices))
        compare.compare(grid, output, _resolve_fit, resources, known.again)


def _recipes(known: argparse.Namespace, settings: list[str]) -> None:
    _refuse(settings, "see softjaccard recipes --help")
    from softjaccard.training.recipes import recipe_parts

    for kind, parts in recipe_parts().items():
        sys.stdout.write(f"{kind}\n")
        for name, what in parts.items():
            sys.stdout.write(f"  {name:<30} {what}\n")
    sys.stdout.write("A recipe joins their names, such as: softjaccard fit --recipe scenes+boundary-smoothing\n")


def _test(known: argparse.Namespace, settings: list[str]) -> None:
    from softjaccard.evaluation.testing import EvaluationSettings, evaluate
    from softjaccard.training.run import open_run

    how = EvaluationSettings(known.split, _inference(known), tuple(known.decoding), known.temperature)
    run = open_run(known.output, known.checkpoint, settings)
    evaluate(run.network, run.loss, run.data, run.trainer, known.output, how, run.about)


def _report(known: argparse.Namespace, settings: list[str]) -> None:
    _refuse(settings, "see softjaccard report --help")
    from softjaccard.evaluation.report import write_report

    write_report(known.runs, known.output, known.split)
    sys.stdout.write(f"Written to {known.output}.\n")


def _data_list(known: argparse.Namespace, settings: list[str]) -> None:
    _refuse(settings, "see softjaccard data list --help")
    from softjaccard.data.check import list_data_sets

    list_data_sets()


def _data_check(known: argparse.Namespace, settings: list[str]) -> None:
    from softjaccard.data.check import check_data_set

    check_data_set(known.name, known.root, known.split, settings)


def _predict(known: argparse.Namespace, settings: list[str]) -> None:
    _refuse(settings, "images go together, before the options")
    if known.checkpoint and known.trained.is_file():
        raise InputError(f"--checkpoint is for a run's folder, but {known.trained} is a file itself.")
    from softjaccard.evaluation.prediction import find_device, predict_images
    from softjaccard.training.run import load_run_network

    inference = _inference(known)
    device = find_device(known.device)
    trained = load_run_network(known.trained, known.checkpoint or "best")
    predict_images(
        trained.network.to(device),
        known.inputs,
        known.output,
        settings=replace(inference, scales=tuple(trained.scale * scale for scale in inference.scales)),
        decoding=known.decoding,
        classes=trained.classes,
        colours=trained.colours,
        probabilities=known.probabilities,
        device=device,
        overwrite=known.overwrite,
        record={"checkpoint": str(trained.checkpoint), "version": softjaccard.__version__},
    )
