"""Every recipe of the package, trained for two steps on tiny images through the real command line."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from drawn_camvid import draw_camvid
from drawn_data import draw, draw_ade20k, draw_cityscapes, draw_deepglobe, draw_voc, save
from drawn_raters import draw_raters
from softjaccard.cli import main
from softjaccard.training.recipes import load_recipe, merge, recipe_parts
from softjaccard.training.run import load_run_network
from softjaccard.training.teacher import load_teacher

PARTS = recipe_parts()
TWO_STEPS = [
    "--trainer.max_steps=2", "--trainer.max_epochs=-1", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=1",
]  # fmt: skip
TINY_SCENES = [
    "--data.size=40", "--data.crop=[32,32]", "--data.pad_multiple=32", "--data.training=8", "--data.validation=2",
    "--data.batch_size=4", "--model.encoder=tu-test_resnet", "--model.model_options={}",
]  # fmt: skip


def trained(output: Path, recipe: str, *settings: str) -> list[dict[str, str]]:
    """Train and return the rows of metrics.csv."""
    assert main(["fit", "--recipe", recipe, "--output", str(output), *TWO_STEPS, *settings]) == 0
    with (output / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "teacher"
    trained(output, "scenes+boundary-smoothing", *TINY_SCENES, "--model.auxiliary.channels=8")
    return output


SEMI_SUPERVISED = ("fixmatch", "unimatch", "jml-ssl")


@pytest.mark.parametrize("method", PARTS["method"])
def test_every_method(method: str, teacher: Path, tmp_path: Path) -> None:
    settings = [f"--model.teacher={teacher}"] if method.startswith("distillation") else []
    settings += ["--data.labelled=0.5"] if method in ("supervised-only", *SEMI_SUPERVISED) else []
    data = "scenes-raters" if method in ("averaged-votes", "random-annotator") else "scenes"
    rows = trained(tmp_path / "run", f"{data}+{method}", *TINY_SCENES, *settings, "--model.auxiliary.channels=8")
    assert [float(row["train/loss"]) > 0 for row in rows] == [True, True]
    assert all(bool(row.get("train/distillation")) == method.startswith("distillation") for row in rows)
    assert all(bool(row.get("train/unlabelled")) == (method in SEMI_SUPERVISED) for row in rows)
    assert (tmp_path / "run" / "labelled.txt").exists() == ("--data.labelled=0.5" in settings)


def test_labelled_images_are_kept_in_a_list_that_can_be_given_back(tmp_path: Path) -> None:
    tiny = [*TINY_SCENES, "--data.training=12", "--data.labelled_seed=3"]
    first = trained(tmp_path / "first", "scenes+jml-ssl", *tiny, "--data.labelled=0.4")
    kept = tmp_path / "first" / "labelled.txt"
    listed = trained(tmp_path / "listed", "scenes+jml-ssl", *tiny, f"--data.labelled={kept}")
    assert listed == first
    assert (tmp_path / "listed" / "labelled.txt").read_text() == kept.read_text()
    assert len(kept.read_text().splitlines()) == 5


def test_a_run_goes_on_with_the_same_labelled_images_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names, output = Path("names.txt"), tmp_path / "run"
    names.write_text("scene 1\nscene 2\nscene 3\nscene 4\n")
    trained(output, "scenes+fixmatch", *TINY_SCENES, "--data.labelled=names.txt", "--checkpoint_every=1")
    more = ["fit", "--recipe=scenes+fixmatch", f"--output={output}", *TWO_STEPS, *TINY_SCENES, "--resume"]
    more += ["--trainer.max_steps=3"]
    kept = (output / "labelled.txt").read_text()
    names.write_text("scene 1\nscene 2\nscene 3\nscene 5\n")
    assert main([*more, "--data.labelled=names.txt"]) == 2
    assert "those of them that have labels, are not those that training began with" in capsys.readouterr().err
    assert (output / "labelled.txt").read_text() == kept
    assert main([*more, f"--data.labelled={output / 'labelled.txt'}"]) == 2  # another file
    names.write_text(kept)
    assert main([*more, f"--data.labelled={tmp_path / 'names.txt'}"]) == 0


def test_a_loss_of_another_library_trains_in_mixed_precision(tmp_path: Path) -> None:
    rows = trained(tmp_path / "run", "scenes+lovasz", *TINY_SCENES, "--trainer.precision=bf16-mixed")
    assert [float(row["train/loss"]) > 0 for row in rows] == [True, True]


def test_images_of_a_folder_need_no_masks_and_are_not_needed_later(tmp_path: Path) -> None:
    root = draw_camvid(tmp_path / "camvid")
    rng = np.random.default_rng(0)
    for number in range(5):
        draw(tmp_path / "more" / "images" / f"{number}.jpg", rng, (48, 64))
    output = tmp_path / "run"
    tiny = ["--data.batch_size=2", "--data.crop=[32,32]", "--data.workers=2", "--model.model_options={}"]
    tiny += ["--model.encoder=tu-test_resnet", "--model.method.threshold=0.05"]
    folder = ["--data.labelled=null", f"--data.unlabelled={tmp_path / 'more' / 'images'}"]
    rows = trained(output, "camvid+jml-ssl", f"--data.root={root}", *folder, *tiny)
    assert [float(row["train/unlabelled"]) > 0 for row in rows] == [True, True]
    assert not (output / "labelled.txt").exists()
    shutil.rmtree(tmp_path / "more")
    assert main(["test", str(output), "--checkpoint=last", "--trainer.enable_progress_bar=false"]) == 0


def test_a_networks_average_is_used_where_that_is_asked_for(tmp_path: Path) -> None:
    settings = ["--data.labelled=0.5", "--model.method.average_decay=0.5", "--data.test=3"]
    networks = []
    for average in ("false", "true"):
        output = tmp_path / average
        trained(output, "scenes+jml-ssl", *TINY_SCENES, *settings, f"--model.test_average={average}")
        networks.append(load_run_network(output, "last").network.state_dict())
        assert main(["test", str(output), "--checkpoint=last", "--trainer.enable_progress_bar=false"]) == 0
    saved = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for network, part in zip(networks, ("network", "average"), strict=True):
        assert all(torch.equal(value, saved[f"{part}.{name}"]) for name, value in network.items())
    weight = "body.segmentation_head.0.weight"
    assert not torch.equal(networks[0][weight], networks[1][weight])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--data.labelled=null"], ["data.labelled and data.unlabelled are missing", "0.125", "folder"]),
        (
            ["--data.labelled=null", "--data.unlabelled=nowhere"],
            ["data.unlabelled: there is no folder or file nowhere"],
        ),
        (["--data.labelled=null", "--data.unlabelled=LIST"], ["data.unlabelled is", "a list", "data.labelled is null"]),
        (["--data.labelled=2"], ["data.labelled is 2.0", "share"]),
        (["--data.labelled=0.25"], ["2 training images have labels", "fewer than the 4"]),
        (["--data.labelled=LIST"], ["1 of the 2 ids", "scene 99", "not in the training split"]),
        (["--data.labelled=1/8"], ["data.labelled is 1/8", "share such as 0.125"]),
        (["--data.labelled=0.5", "--model.method.threshold=2"], ["threshold", "probability"]),
        (["--data.labelled=0.5", "--model.method.temperature=2"], ["temperature", "at most 1"]),
        (
            ["--data.labelled=0.5", "--trainer.precision=bf16-true", "--model.method.average_decay=0.9"],
            ["bf16-true", "average"],
        ),
        (["--data.labelled=0.5", "--model.method.confidence=pixels"], ["model", "confidence"]),
    ],
)
def test_errors_of_semi_supervised_training(
    settings: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("scene 1\nscene 99\n")
    settings = [setting.replace("LIST", str(tmp_path / "list.txt")) for setting in settings]
    recipe = ["fit", "--recipe", "scenes+jml-ssl", "--output", str(tmp_path / "run")]
    assert main([*recipe, *TINY_SCENES, *TWO_STEPS, *settings]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def draw_folder(root: Path) -> None:
    """Write images with index masks and a class file."""
    rng = np.random.default_rng(0)
    for number in range(10):
        draw(root / "images" / f"{number}.png", rng)
        save(rng.integers(0, 3, (12, 17), np.uint8), root / "masks" / f"{number}.png")
    (root / "classes.yaml").write_text("classes: [ground, crop, weed]\n")


DRAWN = {
    "ade20k": (draw_ade20k, []),
    "bu-bil": (
        draw_raters,
        ["--data.classes=[ground,crop,weed]", "--model.num_classes=3", "--data.validation_share=0.4"],
    ),
    "camvid": (draw_camvid, []),
    "cityscapes": (draw_cityscapes, []),
    "deepglobe-land": (draw_deepglobe, []),
    "folder": (draw_folder, ["--model.num_classes=3", "--data.shares=[0.2,0.2]"]),
    "voc": (draw_voc, []),
}


@pytest.mark.filterwarnings("ignore:.*officially")
@pytest.mark.parametrize("data", [name for name in PARTS["data"] if not name.startswith("scenes")])
def test_every_data_set(data: str, tmp_path: Path) -> None:
    draw_files, settings = DRAWN[data]
    draw_files(tmp_path / "data")
    tiny = ["--data.batch_size=2", "--data.crop=[32,32]", "--data.pad_multiple=32", "--data.workers=0"]
    tiny += ["--model.encoder=tu-test_resnet", "--model.model_options={}"]
    rows = trained(tmp_path / "run", data, f"--data.root={tmp_path / 'data'}", *tiny, *settings)
    assert [float(row["train/loss"]) > 0 for row in rows] == [True, True]


@pytest.mark.parametrize("part", [*PARTS["schedule"], *PARTS["loss"]])
def test_every_schedule_and_loss(part: str, tmp_path: Path) -> None:
    assert len(trained(tmp_path / "run", f"scenes+{part}", *TINY_SCENES)) == 2


@pytest.mark.parametrize(
    "network",
    [name if name in ("deeplabv3plus-lite0", "segformer-mit-b0") else pytest.param(name, marks=pytest.mark.slow)
     for name in PARTS["network"]],
)  # fmt: skip
def test_every_network(network: str, tmp_path: Path) -> None:
    settings = ["--data.size=64", "--data.crop=[64,64]", "--data.pad_multiple=64", "--data.training=4"]
    settings += ["--data.validation=2", "--data.batch_size=2", "--trainer.max_steps=2"]
    assert len(trained(tmp_path / "run", f"scenes+{network}", *settings)) == 2


def test_a_run_keeps_the_settings_of_its_recipe(teacher: Path) -> None:
    config = yaml.safe_load((teacher / "config.yaml").read_text())
    settings = config["model"]["init_args"]
    assert settings["label"]["init_args"] == {"epsilon": 0.5, "kernel_size": 3}
    assert settings["optimiser"]["learning_rate"] == 2e-3
    assert settings["auxiliary"] == {"share": 0.5, "channels": 8, "dropout": 0.1}


def test_a_teacher_is_no_part_of_its_students(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    for path in teacher.rglob("*"):
        (gone / path.relative_to(teacher)).mkdir() if path.is_dir() else (gone / path.relative_to(teacher)).write_bytes(
            path.read_bytes()
        )
    student = tmp_path / "student"
    trained(student, "scenes+distillation-jml", *TINY_SCENES, f"--model.teacher={gone}")
    gone.rename(tmp_path / "elsewhere")
    assert main(["test", str(student), "--data.test=2", "--trainer.enable_progress_bar=false"]) == 0
    resumed = [
        "fit",
        "--recipe",
        "scenes+distillation-jml",
        "--output",
        str(student),
        "--resume",
        *TINY_SCENES,
        *TWO_STEPS,
    ]
    assert main([*resumed, f"--model.teacher={gone}"]) == 2
    assert "model.teacher: There is no run" in capsys.readouterr().err


def test_a_teachers_logits_are_kept_and_used_again(teacher: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    whole = ["--data.crop=null", "--data.flip=0", "--data.pad_multiple=32", f"--model.teacher={teacher}"]
    cached = [*TINY_SCENES, *whole, f"--model.teacher_cache={kept}"]
    first = trained(tmp_path / "first", "scenes+distillation-jml", *cached)
    files = {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")}
    assert len(files) == 8
    again = trained(tmp_path / "again", "scenes+distillation-jml", *cached)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")} == files
    assert first == again
    trained(tmp_path / "others", "scenes+distillation-jml", *cached, "--data.scenes_seed=1")
    assert len(list(kept.rglob("*.safetensors"))) == 16
    asked = trained(tmp_path / "asked", "scenes+distillation-jml", *TINY_SCENES, *whole)
    for row, other in zip(first, asked, strict=True):
        assert float(row["train/distillation"]) == pytest.approx(float(other["train/distillation"]), rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], ["teacher", "required"]),
        (["--model.teacher=nowhere"], ["model.teacher", "no run in nowhere"]),
        (["--model.teacher=TEACHER", "--model.num_classes=3"], ["num_classes is 3"]),
        (["--model.teacher=TEACHER", "--model.teacher_cache=kept"], ["teacher_cache", "augmented", "data.flip 0"]),
        (
            ["--model.teacher=TEACHER", "--model.teacher_cache=kept", "--model.auxiliary.channels=8"],
            ["teacher_cache", "JMLDistillation", "main head"],
        ),
        (["--model.teacher=TEACHER", "--model.method.temperature=0"], ["temperature"]),
    ],
)
def test_errors_of_distillation(
    settings: list[str], words: list[str], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [setting.replace("TEACHER", str(teacher)) for setting in settings]
    recipe = ["fit", "--recipe", "scenes+distillation-jml", "--output", str(tmp_path / "run")]
    assert main([*recipe, *TINY_SCENES, *TWO_STEPS, *settings]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words)


def test_a_teacher_of_other_classes_is_refused(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw_camvid(tmp_path / "camvid")
    recipe = ["fit", "--recipe", "camvid+distillation-kl", f"--data.root={root}", "--output", str(tmp_path / "run")]
    assert main([*recipe, f"--model.teacher={teacher}", "--model.encoder=tu-test_resnet"]) == 2
    error = capsys.readouterr().err
    assert "5 classes (background, disc, leaf, crate, cloud)" in error
    assert "the student's data have 11 (sky, building" in error


def test_a_teacher_of_another_scale_is_warned_of(teacher: Path, tmp_path: Path) -> None:
    settings = [*TINY_SCENES, f"--model.teacher={teacher}"]
    with pytest.warns(UserWarning, match=r"at scale 1.0, but sees the student's at 0.5"):
        load_teacher(str(teacher), ("background", "disc", "leaf", "crate", "cloud"), 0.5)
    # In double precision the teacher is asked in it, too.
    rows = trained(tmp_path / "run", "scenes+distillation-jml", *settings, "--trainer.precision=64-true")
    assert len(rows) == 2


def test_every_part_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    output = capsys.readouterr().out
    for parts in PARTS.values():
        for name, what in parts.items():
            assert f"  {name:<30} {what}\n" in output
            assert len(what) > 10


@pytest.mark.parametrize("data", PARTS["data"])
def test_crops_and_padding_suit_every_network_of_stride_32(data: str) -> None:
    settings = load_recipe(data)["data"]["init_args"]
    if data.startswith("scenes"):  # whose first line says so
        assert "stride 32 need --data.crop [64,64]" in PARTS["data"]["scenes"]
        assert settings["size"] % 32 == 0
    else:
        assert [side % 32 for side in (*settings["crop"], settings.get("pad_multiple", 32))] == [0, 0, 0]


def test_parts_join_in_any_order_and_a_new_class_begins_anew() -> None:
    assert load_recipe("boundary-smoothing+scenes") == load_recipe("scenes+unet-small+boundary-smoothing")
    region = load_recipe("bu-bil")["model"]["init_args"]["loss"]["init_args"]["region"]
    assert region == {"class_path": "softjaccard.DiceLoss"}
    assert load_recipe("scenes-raters")["data"]["init_args"]["raters"] == 5
    assert load_recipe("scenes")["model"]["init_args"]["label"]["class_path"].endswith("HardLabel")
    first = {"model": {"class_path": "A", "init_args": {"x": 1, "loss": {"class_path": "B", "init_args": {"y": 2}}}}}
    second = {"model": {"class_path": "C", "init_args": {"loss": {"class_path": "D"}}}}
    assert merge(first, second) == {"model": {"class_path": "C", "init_args": {"x": 1, "loss": {"class_path": "D"}}}}
