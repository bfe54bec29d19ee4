"""The demo as a whole, on tiny settings."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from torch import Tensor
from torch.utils.data import default_collate

from softjaccard.data.synthetic import SyntheticScenes
from softjaccard.demo import LOSSES, DemoResult, DemoSettings, evaluate, run_demo, train
from softjaccard.errors import InputError

TINY = {"batch_size": 2, "size": 32, "training_scenes": 4, "test_scenes": 3}


def stacked(count: int) -> dict[str, Tensor]:
    """Small scenes, one tensor for each name."""
    scenes = SyntheticScenes(count, 32)
    stack: dict[str, Tensor] = default_collate([scenes[i] for i in range(count)])
    return stack


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str]:
    """The demo's result and what it printed."""
    printed = io.StringIO()
    output = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return run_demo(output, seed=1, steps=3, console=Console(file=printed, width=120), **TINY), printed.getvalue()


def test_prints_one_row_for_each_loss_and_where_the_picture_is(demo: tuple[DemoResult, str]) -> None:
    result, printed = demo
    for name, scores in result.scores.items():
        row = next(line for line in printed.splitlines() if line.startswith(f"│ {name}"))
        assert [float(cell) for cell in row.split("│")[2:5]] == [round(100 * score, 1) for score in scores.values()]
    assert str(result.picture) in printed.replace("\n", "")


def test_writes_a_complete_record(demo: tuple[DemoResult, str]) -> None:
    result, _ = demo
    record = json.loads(result.record.read_text())
    assert list(record["scores"]) == list(LOSSES)
    for scores in record["scores"].values():
        assert list(scores) == ["mIoU", "ECE", "distance"]
        assert all(0 <= score <= 1 for score in scores.values())
    assert record["settings"] | {"seed": 1, "steps": 3} | TINY == record["settings"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["seconds"] > 0


def test_writes_a_picture_with_something_in_it_and_nothing_else(demo: tuple[DemoResult, str]) -> None:
    result, _ = demo
    pixels = imread(result.picture)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.1
    assert result.picture.stat().st_size < 500_000
    assert {path.name for path in result.picture.parent.iterdir()} == {"demo.json", "demo.png"}


def test_the_same_seed_gives_the_same_network_whatever_else_happens() -> None:
    settings = DemoSettings(steps=2, batch_size=2)
    scenes = stacked(4)
    networks = []
    for name in ("cross-entropy", "cross-entropy", "JML + CE"):
        torch.rand(1)
        networks.append(train(LOSSES[name], scenes, settings, lambda loss: None).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(networks[0].values(), networks[1].values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(networks[0].values(), networks[2].values(), strict=True))


def test_training_lowers_the_loss() -> None:
    losses: list[float] = []
    scenes = stacked(4)
    train(LOSSES["JML + CE"], scenes, DemoSettings(steps=30, batch_size=4), losses.append)
    assert losses[-1] < 0.8 * losses[0]


def test_the_true_distribution_gets_perfect_scores() -> None:
    scenes = stacked(3)
    scores = evaluate(scenes["soft_label"], scenes)
    assert scores == pytest.approx({"mIoU": 1, "ECE": 0, "distance": 0}, abs=1e-6)


@pytest.mark.parametrize("options", [{"steps": 0}, {"seed": -1}])
def test_bad_options(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        run_demo(tmp_path, **options)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(InputError, match="output: cannot make the folder"):
        run_demo(path)
