"""What the command says, and how it ends, when something the user gave is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import softjaccard
from drawn_camvid import draw_camvid
from softjaccard import cli
from softjaccard.cli import main
from softjaccard.training import recipes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_camvid(tmp_path_factory.mktemp("data") / "camvid")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs go to a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--version"], [softjaccard.__version__]),
        (["--help"], ["demo", "fit", "test", "predict"]),
        (["fit", "--help"], ["--recipe", "--model.loss softjaccard.CrossEntropyLoss", "--resume"]),
        (["test", "--help"], ["RUN", "best"]),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        output = capsys.readouterr().out
        assert all(word in output for word in words)


def test_null_is_known_in_inner_objects(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--model.label.kernel_size", "null", "--model.loss.region.class_weight=null", "--data.crop=null"]
    with pytest.raises(SystemExit):
        main(["fit", "--recipe", "scenes+boundary-smoothing", *settings, "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)
    label, region = model["model"]["init_args"]["label"], model["model"]["init_args"]["loss"]["init_args"]["region"]
    assert label["init_args"] == {"epsilon": 0.5, "kernel_size": None}
    assert region["init_args"]["class_weight"] is None
    assert model["data"]["init_args"]["crop"] is None


def test_all_settings_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--recipe", "camvid", "--print_config"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert all(words in output for words in ("learning_rate: 0.0005", "gradient: exact", "max_epochs: 12"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], ["root", "required"]),
        (["--data.root=nowhere"], ["no folder nowhere"]),
        (["--data.rot=x", "--data.root=ROOT"], ["data.rot.", "mean root"]),
        (["--data.root=ROOT", "--model.encoder_weights=none.pth"], ["no file none.pth"]),
        (["--data.root=ROOT", "--model.encoder=tu-nothing"], ["tu-nothing"]),
        (["--data.root=ROOT", "--model.num_classes=many"], ["model.num_classes", "int", "many"]),
        (["--data.root=ROOT", "--model.num_classes=3"], ["num_classes is 3", "11 classes"]),
        (["--data.root=ROOT", "--model.loss=softjaccard.Jacard"], ["model.loss", "mean JaccardLoss or"]),
        (["--data.root=ROOT", "--model.loss.region.gama=2"], ["model.loss.region.gama", "mean gamma?"]),
        (["--data.root=ROOT", "--model.optimizer.learning_rate=1"], ["model.optimizer", "mean optimiser?"]),
        (["--data.root=ROOT", "--model.optimiser.learning_rte=1"], ["optimiser.learning_rte.", "mean learning_rate?"]),
        (["--data.root=ROOT", "--model.auxiliary.chanels=1"], ["model.auxiliary.chanels", "mean channels?"]),
        (["--data.root=ROOT", "--model.loss.region.alpha=2"], ["model.loss.region", "alpha"]),
        (["--data.root=ROOT", "--model.loss.region.gradient=x"], ["model.loss.region.gradient", "error_scaled"]),
        (["--data.root=ROOT", "--model.loss.region.gamma=0.5"], ["gamma", "0.5"]),
        (["--data.root=ROOT", "--model.optimiser.learning_rate=-1"], ["learning_rate"]),
        (["--data.root=ROOT", "--model.optimiser.power=-1"], ["power is -1"]),
        (["--data.root=ROOT", "--model.encoder_weights=imagnet"], ["imagnet", "imagenet"]),
        (["--data.root=ROOT", "--data.batch_size=1.5"], ["data.batch_size: expected int. Got value: 1.5\n"]),
        (["--data.root=ROOT", "--model.auxiliary.channels=x"], ["auxiliary.channels: expected int. Got value: x\n"]),
        (["--data.root=ROOT", "--seed=-1"], ["seed", "-1", "0"]),
        (["--data.root=ROOT", "--seed=5000000000"], ["seed", "5000000000", "4294967295"]),
        (["--data.root=ROOT", "--trainer.max_epoch=3"], ["trainer.max_epoch", "mean max_epochs"]),
        (["--data.root=ROOT", "--trainer.accelerator=abacus"], ["trainer", "abacus"]),
        (["--data.root=ROOT", "--nonsense=3"], ["nonsense"]),
        (["--config=other.yaml"], ["other.yaml", "--recipe"]),
        (["--config=FILE"], ["file.yaml", "modell.", "mean model?"]),
        (["--resume"], ["no run to resume"]),
    ],
)
def test_errors_of_fit(
    settings: list[str], words: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "file.yaml"
    config.write_text(f"modell: 3\ndata:\n  init_args:\n    root: {root}\n")
    settings = [setting.replace("ROOT", str(root)).replace("FILE", str(config)) for setting in settings]
    assert_one_line(["fit", "--recipe", "camvid", "--output", "run", *settings], words, capsys)
    assert not Path("run").exists() or "num_classes is 3" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["train"], ["train", "fit"]),
        (["fit"], ["--recipe", "softjaccard recipes"]),
        (["fit", "--recipe", "camvit"], ["'camvit'", "camvid"]),
        (["fit", "--recipe", "hard"], ["hard", "data", "camvid", "scenes"]),
        (["fit", "--recipe", "camvid+scenes"], ["camvid", "scenes", "choose one"]),
        (["fit", "--config"], ["--config"]),
        (["fit", "--recipe", "camvid", "--data.root", "x", "--output"], ["--output"]),
        (["test"], ["RUN"]),
        (["test", "nowhere"], ["no run in nowhere"]),
        (["demo", "--nonsense"], ["nonsense"]),
    ],
)
def test_errors_of_the_command(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(arguments, words, capsys)


def assert_one_line(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with 2 and one line on stderr that has all the words."""
    try:
        code: object = main(arguments)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1, error
    assert error.startswith("softjaccard")
    assert all(word in error for word in words), error


def test_values_of_settings_are_not_taken_for_arguments() -> None:
    joined = cli._join_settings(
        ["test", "--data.root", "x", "--seed", "1", "run", "--checkpoint", "last", "--model.help"]
    )
    assert joined == ["test", "--data.root=x", "--seed=1", "run", "--checkpoint", "last", "--model.help"]
    assert cli._join_settings(["--model.a=1", "run", "--data.b", "-1"]) == ["--model.a=1", "run", "--data.b=-1"]


def test_a_damaged_image_is_named_from_a_worker_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw_camvid(tmp_path / "camvid")
    broken = root / "images" / "train" / "train_3.jpg"
    broken.write_bytes(b"not an image")
    settings = ["--model.architecture=unet", "--model.encoder=tu-test_resnet", "--data.batch_size=2"]
    settings += ["--data.pad_multiple=32", "--data.workers=1", "--trainer.num_sanity_val_steps=0"]
    code = main(["fit", "--recipe", "camvid", "--data.root", str(root), *settings, "--output", "run"])
    assert code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"softjaccard fit: {broken} cannot be read")


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(recipes, "load_recipe", bug)
    with pytest.raises(KeyError, match="bug"):
        main(["fit", "--recipe", "camvid"])
