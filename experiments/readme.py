"""Makes the tables again from the stored results, and README.md of them: python experiments/readme.py [FOLDER ...]."""

from __future__ import annotations

import itertools
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from softjaccard.cli import main
from softjaccard.files import write_text

HERE = Path(__file__).parent
START = (HERE / "introduction.md").read_text(encoding="utf-8")


class Experiment(NamedTuple):
    """A folder of results, the grid that they are of, and further settings of all its rows."""

    folder: str
    grid: str
    further: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where its results are."""
        return HERE / self.folder


EXPERIMENTS = (
    Experiment("camvid_losses", "camvid_losses"),
    Experiment("camvid_losses_unet", "camvid_losses", ("--model.architecture=unet",)),
    Experiment("camvid_losses_resnet18", "camvid_losses", ("--model.encoder=resnet18", "--model.encoder_weights=null")),
    Experiment(
        "camvid_losses_unet_resnet18",
        "camvid_losses",
        ("--model.architecture=unet", "--model.encoder=resnet18", "--model.encoder_weights=null"),
    ),
    Experiment("camvid_smoothing", "camvid_smoothing"),
    Experiment("camvid_distillation", "camvid_distillation"),
    Experiment("camvid_semisupervised", "camvid_semisupervised"),
    Experiment("camvid_semisupervised_sixteenth", "camvid_semisupervised", ("--data.labelled=0.0625",)),
    Experiment("camvid_semisupervised_quarter", "camvid_semisupervised", ("--data.labelled=0.25",)),
    Experiment("camvid_semisupervised_choices", "camvid_semisupervised_choices"),
    Experiment("scenes_semisupervised", "scenes_semisupervised"),
    Experiment("scenes_semisupervised_eighth", "scenes_semisupervised", ("--data.labelled=0.125",)),
    Experiment("scenes_semisupervised_quarter", "scenes_semisupervised", ("--data.labelled=0.25",)),
    Experiment("scenes_semisupervised_half", "scenes_semisupervised", ("--data.labelled=0.5",)),
    Experiment("camvid_full", "camvid_full"),
    Experiment("bu_bil", "bu_bil"),
)


def make_tables(experiment: Experiment) -> None:
    """Write table.md, table.csv and differences.png in an experiment's folder."""
    grid = str(HERE / f"{experiment.grid}.yaml")
    table = experiment.path / "table.md"
    table.unlink(missing_ok=True)
    # Exit code 2 also tells of failed runs, which the table has; other errors leave none.
    code = main(["compare", grid, "--output", str(experiment.path), "--tables-only", *experiment.further])
    if not table.is_file():
        raise SystemExit(code)


def data_arguments(grid: Path) -> list[str]:
    """Return what says where a grid's data are; nothing for scenes, which are drawn."""
    return [] if "\nrecipe: scenes" in grid.read_text(encoding="utf-8") else ["--data.root", "PATH"]


def section(experiment: Experiment) -> str:
    """Return the README's part about an experiment: what the grid's first comment says, its command, and its table."""
    grid = HERE / f"{experiment.grid}.yaml"
    lines = grid.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    about = [line.removeprefix("# ") for line in comment if not line.startswith("#  ")]  # the command is below
    command = ["softjaccard", "compare", f"experiments/{experiment.grid}.yaml"]
    command += ["--output", f"experiments/{experiment.folder}", *data_arguments(grid), *experiment.further]
    title, _, table = (experiment.path / "table.md").read_text(encoding="utf-8").partition("\n")
    settings = f" ({' '.join(experiment.further)})" if experiment.further else ""
    picture = f"![Differences]({experiment.folder}/differences.png)"
    return "\n".join(
        [
            f"#{title}{settings}",
            "",
            *about,
            "",
            "```bash",
            shlex.join(command),
            "```",
            "",
            table.strip(),
            "",
            picture,
            "",
        ]
    )


def readme() -> str:
    """Return README.md, of the tables that are there."""
    parts = [section(each) for each in EXPERIMENTS if (each.path / "table.md").is_file()]
    return "\n".join([START, *parts])


if __name__ == "__main__":
    chosen = [Path(each).name for each in sys.argv[1:]] or [each.folder for each in EXPERIMENTS]
    if unknown := set(chosen).difference(each.folder for each in EXPERIMENTS):
        raise SystemExit(f"no folder of experiments: {', '.join(sorted(unknown))}")
    for each in EXPERIMENTS:
        if (each.path / "results").is_dir() and each.folder in chosen:
            make_tables(each)
    write_text(HERE / "README.md", readme())
    sys.stdout.write("Written to experiments/README.md.\n")
