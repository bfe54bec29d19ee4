"""Runs: a training from configs and a command line, kept in a folder; and what others need of a run.

A run's folder has `config.yaml` (every setting, resolved), `checkpoints/best.ckpt` (by validation mIoU_D) and
`checkpoints/last.ckpt`, `metrics.csv`, `tensorboard/`, and after a test `test.json` and `evaluation/test/`.
"""

from __future__ import annotations

import logging
import platform
import re
import shutil
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from jsonargparse import Namespace as Config
from jsonargparse.typing import PositiveInt, restricted_number_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

import softjaccard
from softjaccard.data.module import SegmentationData
from softjaccard.errors import InputError, nearest_names
from softjaccard.files import remove_unfinished
from softjaccard.settings import FREE_SETTINGS, changed_settings, in_short, read_yaml
from softjaccard.training.checkpoints import CheckpointFiles, RunCheckpoints, RunConfig, load_checkpoint
from softjaccard.training.hints import with_hint
from softjaccard.training.recipes import merge
from softjaccard.training.reporting import CSVFile, how_far, progress
from softjaccard.training.resumption import MAX_SEED, Resumption

MONITOR = "val/mIoU_D"

# What a run decides itself.
_FIXED_TRAINER_OPTIONS = {
    "barebones",
    "callbacks",
    "default_root_dir",
    "enable_autolog_hparams",
    "enable_checkpointing",
    "logger",
    "model_registry",
    "plugins",
}

_PARTS = ("seed", "model", "data", "checkpoint_every", "trainer")

_PATHS = {"encoder_weights", "teacher", "teacher_cache", "labelled", "unlabelled"}

_SEED = restricted_number_type("Seed", int, [(">=", 0), ("<=", MAX_SEED)])


def fit(
    output: Path, configs: Sequence[Path | Mapping[str, Any]], settings: Sequence[str] = (), *, resume: bool = False
) -> None:
    """Train and keep the run in a folder.

    Args:
        output: The run's folder, made if need be.
        configs: YAML files, and settings that are read already; the last wins.
        settings: Single ones, which win over these, as on the command line.
        resume: Go on from the run's last checkpoint as if nothing had happened (from the beginning if there is none).

    Raises:
        InputError: If a setting is unknown or wrong, a file is missing, or the folder holds a run and `resume` is not
            given, or holds none and it is.
    """
    saved_config, last = output / "config.yaml", output / "checkpoints" / "last.ckpt"
    # Lightning starts this command once more for each further device, when the first one's run is under way.
    first = getattr(rank_zero_only, "rank", 0) == 0
    if resume and not saved_config.exists():
        raise InputError(f"There is no run to resume in {output}: {saved_config} was looked for.")
    parser = build_parser()
    config = _parse(parser, configs, settings)
    plain = _as_plain(parser, config)
    if first and saved_config.exists() and not resume:
        raise InputError(
            f"{output} already holds a run: go on with it (--resume), choose another --output, or remove it."
        )
    if resume:
        _check_same_run(plain, _saved_settings(parser, saved_config), output)
    step = _resumed_step(last) if resume and last.exists() else 0
    seed_everything(config.seed, workers=True, verbose=False)
    model, data = _instantiate(parser, config)
    data.setup("fit")
    metrics = CSVFile(output / "metrics.csv", step)
    checkpoints = RunCheckpoints(last.parent, MONITOR, metrics, config.checkpoint_every)
    trainer = _trainer(
        config,
        output,
        callbacks=[
            *progress(config.trainer.enable_progress_bar),
            RunConfig(saved_config, plain),
            Resumption(config.seed),
            checkpoints,
        ],
        logger=[
            metrics,
            # What was logged after the checkpoint is not shown: it is logged again.
            TensorBoardLogger(output, name="", version="tensorboard", purge_step=step if resume else None),
        ],
    )
    made = first and not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    if resume and first:
        remove_unfinished(output, last.parent)
    if step:
        _say(f"Going on from step {step}.")
    if isinstance(data, SegmentationData):  # Lightning looks at the loader's class only
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
    try:
        trainer.fit(model, data, ckpt_path=last if resume and last.exists() else None)
    except InputError:
        if made and not saved_config.exists():  # refused before its first step
            shutil.rmtree(output)
        raise
    except SystemExit as stop:  # Lightning's answer to Ctrl-C, and to SIGTERM, there with the exit code of success
        _say(_after_stop(saved_config.exists(), checkpoints.step))
        if isinstance(stop, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from stop
        raise KeyboardInterrupt from stop
    score = "" if checkpoints.best is None else f", best validation mIoU_D {checkpoints.best:.4f}"
    _say(f"Trained for {how_far(trainer)}{score}. The run is in {output}.")
    if saved_config.exists() and checkpoints.step < trainer.global_step:
        _say(f"--resume goes on from step {checkpoints.step}: amid the batches of one step no checkpoint is made.")
    if last.exists():
        _say(f"Next: softjaccard test {output}{'' if (last.parent / 'best.ckpt').exists() else ' --checkpoint last'}")


def resolve(configs: Sequence[Path | Mapping[str, Any]], settings: Sequence[str] = ()) -> dict[str, Any]:
    """Return every setting of a run as plain data, as its `config.yaml` has them.

    Args:
        configs: As in `fit`.
        settings: Likewise.

    Raises:
        InputError: If a setting is unknown or wrong.
    """
    parser = build_parser()
    return _as_plain(parser, _parse(parser, configs, settings))


@dataclass(frozen=True)
class OpenedRun:
    """A run's network with its data, to test it.

    Attributes:
        network: Has `predict` from images to logits.
        loss: What it was trained with, from logits and labels to a scalar; None for a model that has no such attribute.
        data: Not yet set up.
        trainer: Without loggers.
        about: `checkpoint`, `epoch`, `step`, `seed`, `versions` of the software that runs now, and `overrides`.
    """

    network: Any
    loss: Any
    data: SegmentationData
    trainer: Trainer
    about: Mapping[str, Any]


def open_run(output: Path, checkpoint: str, arguments: Sequence[str]) -> OpenedRun:
    """Build the network, data and trainer of a run.

    Args:
        output: The run's folder.
        checkpoint: "best" (the last one of a run without validation), "last", or the path of a checkpoint of the same
            network.
        arguments: Settings that differ from the run's, as on the command line.

    Raises:
        InputError: If the run, its checkpoint or its data are missing, or are not of a kind that can be tested.
    """
    path = find_checkpoint(output, checkpoint)
    state = load_checkpoint(path)
    parser = build_parser()
    config = _parse(parser, [output / "config.yaml"], arguments)
    _forget_encoder_weights(config)
    model, data = _instantiate(parser, config)
    _load_weights(model, state, path)
    if not isinstance(data, SegmentationData):
        raise InputError(f"data: expected a module derived from SegmentationData, got {type(data).__name__}.")
    about = {
        "checkpoint": str(path),
        "epoch": state["epoch"],
        "step": state["global_step"],
        "seed": config.seed,
        "versions": {
            "softjaccard": softjaccard.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "lightning", "timm", "segmentation-models-pytorch")},
        },
        "overrides": tuple(arguments),
    }
    trainer = _trainer(config, output, callbacks=progress(config.trainer.enable_progress_bar), logger=False)
    return OpenedRun(_network_of(model, path), getattr(model, "loss", None), data, trainer, about)


@dataclass(frozen=True)
class RunNetwork:
    """The network of a run and what its use needs to know of the run.

    Attributes:
        network: On the CPU, in evaluation mode; has `predict` from images to logits.
        checkpoint: The file it is from.
        classes: Names of the C classes, or none where the run did not keep them.
        colours: Of the classes, as (red, green, blue) from 0 to 255, or none where the data set has none.
        scale: Factor on the images' height and width in the run's data; the network expects images of that size.
    """

    network: Any
    checkpoint: Path
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    scale: float


def load_run_network(run: Path, checkpoint: str = "best") -> RunNetwork:
    """Build a run's network from its checkpoint alone; neither its data nor its config file are needed.

    Args:
        run: The run's folder, or the file of a checkpoint.
        checkpoint: "best" (or the last one of a run without validation), "last", or the path of a file; for a folder.

    Raises:
        InputError: If the run or its checkpoint is missing or damaged, or its model has no such network.
    """
    path = run if run.is_file() else find_checkpoint(run, checkpoint)
    state = load_checkpoint(path)
    try:
        kept = state["softjaccard"]
        config = kept["config"]
        settings = {"model": config["model"]}
    except KeyError as error:
        raise InputError(f"{path} has no config; expected a checkpoint made by softjaccard fit.") from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=LightningModule, required=True)
    try:
        parsed = parser.parse_object(settings)
        _forget_encoder_weights(parsed)
        model = parser.instantiate(parsed).model
    except (ArgumentError, ValueError) as error:
        raise InputError(f"The network of {path} cannot be built: {_shorten(str(error))}") from error
    _load_weights(model, state, path)
    return RunNetwork(
        _network_of(model, path).eval(),
        path,
        classes=tuple(kept.get("classes", ())),
        colours=tuple(map(tuple, kept.get("colours", ()))),
        scale=float(config.get("data", {}).get("init_args", {}).get("scale", 1.0)),
    )


def find_checkpoint(output: Path, checkpoint: str) -> Path:
    """Return the path of a run's checkpoint.

    Args:
        output: The run's folder.
        checkpoint: "best" (or the last one of a run without validation), "last", or a path, which is returned.

    Raises:
        InputError: If there is no run in the folder.
    """
    saved_config = output / "config.yaml"
    if not saved_config.exists():
        raise InputError(f"There is no run in {output}: {saved_config} was looked for.")
    if checkpoint not in ("best", "last"):
        return Path(checkpoint)
    path = output / "checkpoints" / f"{checkpoint}.ckpt"
    last = path.with_name("last.ckpt")
    if not path.exists() and last.exists():
        _say(f"The run has no {path.name}, because it was not validated: {last.name} is used.")
        return last
    return path


def build_parser() -> ArgumentParser:
    """Return the parser of a run's settings: seed, model, data and trainer."""
    parser = ArgumentParser(prog="softjaccard fit", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file; more than one add up, the last wins.")
    parser.add_argument("--seed", type=_SEED, default=0, help="Of initial weights, order and augmentation.")
    parser.add_argument("--model", type=LightningModule, required=True, help="The Lightning module to train.")
    parser.add_argument("--data", type=LightningDataModule, required=True, help="Its data module.")
    parser.add_argument(
        "--checkpoint_every",
        type=PositiveInt | None,
        help="Steps between two last checkpoints; null for the ends of epochs only.",
    )
    parser.add_class_arguments(Trainer, "trainer", skip=_FIXED_TRAINER_OPTIONS, instantiate=False)
    parser.link_arguments("seed", "data.init_args.seed")
    return parser


def _resumed_step(last: Path) -> int:
    state = load_checkpoint(last)
    if "generators" not in state:
        raise InputError(
            f"{last} cannot be resumed: it has no states of random generators, because "
            "softjaccard fit did not make it, or an older version did."
        )
    return int(state["global_step"])


def _after_stop(kept: bool, step: int) -> str:
    if not kept:
        return "Stopped before the end of the first step; nothing is kept."
    where = f"goes on from step {step}" if step else "begins again, because there is no checkpoint yet"
    return f"Stopped. The same command with --resume {where}."


@rank_zero_only
def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _parse(parser: ArgumentParser, configs: Sequence[Path | Mapping[str, Any]], settings: Sequence[str]) -> Config:
    plain = [_read_config(config) if isinstance(config, Path) else config for config in configs]
    arguments = [f"--config={yaml.safe_dump(dict(config))}" for config in plain]
    try:
        return parser.parse_args([*arguments, *map(_nest_null, settings)])
    except ArgumentError as error:
        known = {**dict.fromkeys(_PARTS, ()), "trainer": parser.get_defaults()["trainer"].as_dict()}
        raise InputError(with_hint(_shorten(str(error)), reduce(merge, plain, {}), known)) from error


def _nest_null(setting: str) -> str:
    """Write `--model.a.b=null` as `--model={a: {b: null}}`; jsonargparse makes the text None of it in an inner object.

    Example:
        >>> _nest_null("--model.label.kernel_size=null"), _nest_null("--data.crop=null")
        ('--model={label: {kernel_size: null}}', '--data.crop=null')
    """
    if not re.fullmatch(r"--(model|data)([.]\w+){2,}=null", setting):
        return setting
    part, *names = setting.removesuffix("=null").split(".")
    return f"{part}={''.join(f'{{{name}: ' for name in names)}null{'}' * len(names)}"


def _read_config(path: Path) -> Mapping[str, Any]:
    config = read_yaml(path)
    if not isinstance(config, Mapping):
        raise InputError(f"--config: {path} holds no settings; expected a mapping with model, data and trainer.")
    for name in config:
        if name not in _PARTS:
            raise InputError(f"--config: {path} has an unknown part {name}. {nearest_names(str(name), _PARTS)}")
    return config


def _shorten(message: str) -> str:
    """Bring jsonargparse's nested report into one line that begins with the dotted name of the setting."""
    name = ".".join(re.findall(r'Parser key "([^"]+)":', message))
    frame = re.compile(
        r"^(- )?(Parser key|Problem with given class_path|Does not validate|Subtypes:|Errors:|Given value)"
    )
    lines = [line.strip() for line in message.replace(f'Parser key "{name}": ', "").splitlines()]
    problem = "; ".join(line.removeprefix("- ").rstrip(".") for line in lines if not frame.match(line))
    problem = re.sub(r"Expected a <class '([\w.]+)'>", r"expected \1", problem)
    problem = problem.replace("Expected a typing.Literal", "expected one of ")
    problem = re.sub(r"the following arguments are required: ([\w, ]+)", r"\1 is required", problem)
    if required := re.fullmatch(r"([\w.]+) is required", problem):
        return f"--{'.'.join(filter(None, (name, required[1])))} is required"
    problem = re.sub(r"(; expected NoneType)+$", "", problem)  # what else an optional setting takes
    if "Got value" not in problem and (given := re.search(r"Given value: (.*)", message)):
        problem = f"{problem}. Got value: {given[1]}"
    if missing := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", problem):
        problem = f"{problem}. {nearest_names(missing[2], dir(sys.modules.get(missing[1])))}"
    return f"{name}: {problem}" if name else problem


def _instantiate(parser: ArgumentParser, config: Config) -> tuple[LightningModule, LightningDataModule]:
    try:
        instances = parser.instantiate(config)
    except ValueError as error:  # what our constructors raise for a setting out of range
        message = str(error)
        raise InputError(_shorten(message) if "\n" in message else message) from error
    return instances.model, instances.data


def _forget_encoder_weights(config: Config) -> None:
    """Leave out the encoder's file: the checkpoint has its weights, and it need not be there any more."""
    if "model.init_args.encoder_weights" in config:
        config["model.init_args.encoder_weights"] = None


def _load_weights(model: LightningModule, state: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the network that its run's config describes.") from error


def _network_of(model: LightningModule, path: Path) -> Any:
    network = getattr(model, "tested_network", getattr(model, "network", None))
    if network is None or not hasattr(network, "predict"):
        raise InputError(
            f"The model of {path}, {type(model).__name__}, has no attribute network with a predict method."
        )
    return network


def _as_plain(parser: ArgumentParser, config: Config) -> dict[str, Any]:
    plain: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_unset=False))
    plain.pop("config", None)
    return plain


def _saved_settings(parser: ArgumentParser, path: Path) -> dict[str, Any]:
    """Return a run's config as this version reads it: settings that it did not have then have their defaults."""
    try:
        return _as_plain(parser, _parse(parser, [path], []))
    except InputError:
        saved: dict[str, Any] = read_yaml(path)
        return saved


def _check_same_run(config: dict[str, Any], saved: dict[str, Any], output: Path) -> None:
    before, now = ({name: _what_counts(each[name]) for name in ("seed", "model", "data")} for each in (saved, config))
    if changed := changed_settings(before, now):
        raise InputError(
            f"A run is resumed with the settings in {output / 'config.yaml'}, but others are given: "
            f"{in_short(changed)}. Repeat those, or start another run with another --output."
        )


def _what_counts(part: Any) -> Any:
    """Return a part of the config without the settings that say where and how, but not what, and with whole paths."""
    if not isinstance(part, dict):
        return part
    settings = {
        name: str(Path(value).expanduser().resolve()) if name in _PATHS and isinstance(value, str) else value
        for name, value in part.get("init_args", {}).items()
        if name not in FREE_SETTINGS
    }
    return {**part, "init_args": settings}


def _trainer(config: Config, output: Path, **settings: Any) -> Trainer:
    # Advice of Lightning's that does not apply here or that a user of the command cannot follow.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.* is deprecated.*",
        ".*module.s. in eval mode.*",  # a network's average
        ".*add the following callbacks: .'Timer'.*",  # resumed without trainer.max_time
    ):
        warnings.filterwarnings("ignore", message)
    options = config.trainer.as_dict()
    try:
        return Trainer(**options, default_root_dir=output, plugins=[CheckpointFiles()], **settings)
    except (ValueError, MisconfigurationException) as error:
        raise InputError(f"trainer: {error}") from error
