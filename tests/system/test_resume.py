"""Runs that are killed and resumed end as if they had not been killed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fork_server
from drawn_data import draw
from softjaccard.cli import main

# Five steps an epoch, a validation in its midst, dropout in the network, and the last checkpoint every two steps.
SETTINGS = [
    "--data.size=40", "--data.crop=[32,32]", "--data.training=20", "--data.validation=3", "--data.batch_size=4",
    "--data.evaluation_batch_size=2", "--data.pad_multiple=32", "--model.architecture=deeplabv3plus",
    "--model.encoder=tu-test_resnet", "--model.model_options={}", "--trainer.accelerator=cpu",
    "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=3", "--checkpoint_every=2",
]  # fmt: skip

Run = Callable[..., int]


@pytest.fixture(scope="module")
def softjaccard() -> Iterator[Run]:
    """Runs a command in a process of its own, and returns its exit code, or minus the signal that killed it."""
    command = [sys.executable, str(Path(fork_server.__file__))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(arguments: list[str], log: Path, kill: tuple[str, float] | None = None) -> int:
            server.stdin.write(json.dumps({"arguments": arguments, "log": str(log), "kill": kill}) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield run
        server.stdin.close()


def fit(softjaccard: Run, output: Path, settings: list[str], kill: tuple[str, float] | None = None) -> int:
    """Begin a run, or go on with it if it has begun."""
    arguments = ["fit", "--recipe=scenes", f"--output={output}", *SETTINGS, *settings]
    resume = ["--resume"] if (output / "config.yaml").exists() else []
    return softjaccard([*arguments, *resume], output.with_suffix(".log"), kill)


def assert_same(run: Path, other: Path) -> None:
    """Compare all that two runs have kept, bit for bit."""
    for name in ("config.yaml", "metrics.csv"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (run, other)]
    assert names == [["best.ckpt", "last.ckpt"]] * 2
    for name in names[0]:
        loaded = [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (run, other)]
        for checkpoint in loaded:
            checkpoint["softjaccard"]["config"]["trainer"].pop("max_steps")  # of when the best one was written
        assert_same_values(*loaded, name)
    assert shown(run) == shown(other)


def assert_same_values(value: Any, other: Any, name: str) -> None:
    assert type(value) is type(other), name
    if isinstance(value, dict):
        assert value.keys() == other.keys(), name
        for key in value:
            assert_same_values(value[key], other[key], f"{name}/{key}")
    elif isinstance(value, list | tuple):
        assert len(value) == len(other), name
        for position, parts in enumerate(zip(value, other, strict=True)):
            assert_same_values(*parts, f"{name}/{position}")
    elif isinstance(value, torch.Tensor):
        assert value.dtype == other.dtype, name
        assert torch.equal(value, other), name
    else:
        assert value == other, name


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves that TensorBoard shows of a run."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def uninterrupted(softjaccard: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert fit(softjaccard, output, []) == 0, output.with_suffix(".log").read_text()
    return output


def test_the_checkpoint_has_what_it_should(uninterrupted: Path) -> None:
    last = torch.load(uninterrupted / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 15
    assert {"epoch": 3, "batches": 0}.items() <= last["ScenesData"].items()
    assert {"python", "numpy", "torch"} <= last["generators"][0].keys()
    curves = shown(uninterrupted)
    assert [step for step, _ in curves["train/loss"]] == list(range(15))
    assert [step for step, _ in curves["val/mIoU_D"]] == [2, 7, 12]


@pytest.mark.parametrize(("how", "code"), [("Ctrl-C", 130), ("SIGTERM", 128 + signal.SIGTERM)])
def test_a_run_that_is_stopped_says_where_it_goes_on(
    softjaccard: Run, uninterrupted: Path, tmp_path: Path, how: str, code: int
) -> None:
    output = tmp_path / "run"
    assert fit(softjaccard, output, [], (how, 8)) == code
    assert "--resume goes on from step 6." in output.with_suffix(".log").read_text()
    assert fit(softjaccard, output, []) == 0
    assert "Going on from step 6." in output.with_suffix(".log").read_text()
    assert_same(output, uninterrupted)


def test_checkpoints_without_generators_are_not_resumed(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(uninterrupted, tmp_path / "run")
    path = output / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["generators"]
    torch.save(checkpoint, path)
    assert main(["fit", "--recipe=scenes", f"--output={output}", *SETTINGS, "--resume"]) == 2
    assert "last.ckpt cannot be resumed" in capsys.readouterr().err


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(softjaccard: Run, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    chance = random.Random()
    kill = (chance.choice(fork_server.PLACES), chance.randint(2, 7))
    assert fit(softjaccard, output, [], kill) == -signal.SIGKILL, kill
    assert fit(softjaccard, output, []) == 0, (kill, output.with_suffix(".log").read_text())
    assert_same(output, uninterrupted)


def test_a_limit_of_steps_that_is_raised_leaves_nothing_out(softjaccard: Run, tmp_path: Path) -> None:
    """Before an epoch's last batch, at its end, after a validation, and once more with nothing to do."""
    expected, output = tmp_path / "expected", tmp_path / "run"
    # The limit of steps is the length of the learning rate's schedule, so it has to be constant.
    settings = ["--model.optimiser.power=0", "--model.optimiser.warmup=0"]
    assert fit(softjaccard, expected, settings) == 0, expected.with_suffix(".log").read_text()
    for steps, came in [
        (4, "4 steps, as far as batch 4 of epoch 1"),
        (5, "1 epochs"),
        (8, "8 steps, as far as batch 3 of epoch 2"),
        (8, "8 steps, as far as batch 3 of epoch 2"),
        (-1, "3 epochs"),
    ]:
        assert fit(softjaccard, output, [*settings, f"--trainer.max_steps={steps}"]) == 0
        told = output.with_suffix(".log").read_text().splitlines()[-2]
        assert told.startswith(f"Trained for {came}, best validation mIoU_D"), told
    assert_same(output, expected)


def test_a_training_that_is_told_to_stop_goes_on_there(softjaccard: Run, uninterrupted: Path, tmp_path: Path) -> None:
    """Where it would be validated anyway, for it is validated before it stops."""
    output = tmp_path / "run"
    assert fit(softjaccard, output, [], ("stop", 8)) == 0
    assert "Trained for 8 steps" in output.with_suffix(".log").read_text()
    assert fit(softjaccard, output, []) == 0
    assert "Going on from step 8." in output.with_suffix(".log").read_text()
    assert_same(output, uninterrupted)


def test_a_stop_amid_the_batches_of_a_step_goes_on_before(softjaccard: Run, tmp_path: Path) -> None:
    """Steps of two, two and one batches; the stop is after the third batch of the second epoch."""
    expected, output = tmp_path / "expected", tmp_path / "run"
    settings = ["--trainer.accumulate_grad_batches=2", "--checkpoint_every=null"]
    assert fit(softjaccard, expected, settings) == 0, expected.with_suffix(".log").read_text()
    assert fit(softjaccard, output, settings, ("stop", 8)) == 0
    log = output.with_suffix(".log").read_text()
    assert "Trained for 4 steps, as far as batch 3 of epoch 2" in log
    assert "--resume goes on from step 3:" in log
    assert fit(softjaccard, output, settings) == 0
    assert_same(output, expected)


@pytest.mark.parametrize("of_a_folder", [False, True])
def test_training_with_unlabelled_images_goes_on_within_an_epoch(
    of_a_folder: bool, softjaccard: Run, tmp_path: Path
) -> None:
    """Five steps an epoch; the network's average is a part of the checkpoint."""
    settings = [
        "--recipe=scenes+jml-ssl",
        "--model.method.average_decay=0.9",
        "--model.method.threshold=0.2",
        "--data.batch_size=2",
    ]
    if of_a_folder:
        rng = np.random.default_rng(0)
        for number in range(10):
            draw(tmp_path / "more" / f"{number}.png", rng, (40, 40))
        settings += ["--data.labelled=null", f"--data.unlabelled={tmp_path / 'more'}"]
    else:
        settings += ["--data.labelled=0.5"]
    expected, output = tmp_path / "expected", tmp_path / "run"
    assert fit(softjaccard, expected, settings) == 0, expected.with_suffix(".log").read_text()
    assert fit(softjaccard, output, settings, ("optimiser", 9)) == -signal.SIGKILL
    last = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert {"epoch": 1, "batches": 3}.items() <= last["ScenesData"].items()
    assert any(name.startswith("average.") for name in last["state_dict"])
    assert fit(softjaccard, output, settings) == 0, output.with_suffix(".log").read_text()
    assert_same(output, expected)
    if not of_a_folder:
        assert (output / "labelled.txt").read_text() == (expected / "labelled.txt").read_text()
    confident = dict(shown(output)["train/confident"])
    assert len(confident) == 15
    assert max(confident.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["--data.workers=2"],
        ["--trainer.accumulate_grad_batches=2", "--checkpoint_every=1"],
        ["--trainer.max_epochs=-1", "--trainer.max_steps=13", "--trainer.check_val_every_n_epoch=null"],
    ],
    ids=["plain", "workers", "accumulation", "steps"],
)
def test_twenty_kills(softjaccard: Run, tmp_path: Path, settings: list[str]) -> None:
    """Five for each of four settings, in one run as long as it lasts."""
    expected, output, chance, kills = tmp_path / "expected", tmp_path / "run", random.Random(), []
    assert fit(softjaccard, expected, settings) == 0, expected.with_suffix(".log").read_text()
    while len(kills) < 5:
        place = chance.choice((*fork_server.PLACES, "seconds", "seconds"))
        kill = (place, chance.uniform(0.1, 4) if place == "seconds" else chance.randint(1, 6))
        status = fit(softjaccard, output, settings, kill)
        assert status in (0, -signal.SIGKILL), (kill, output.with_suffix(".log").read_text())
        if status:
            kills.append(kill)
        else:
            assert_same(output, expected)
            shutil.rmtree(output)
    print(kills)
    assert fit(softjaccard, output, settings) == 0, (kills, output.with_suffix(".log").read_text())
    assert_same(output, expected)
