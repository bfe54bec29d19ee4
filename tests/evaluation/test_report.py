"""The report: its numbers are the stored ones, its texts are escaped, and a browser shows all of it at two widths."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from chromium import run_chromium
from made_up_results import CLASSES, COLOURS, made_up, rated
from softjaccard.cli import main
from softjaccard.errors import InputError
from softjaccard.evaluation.report import parts, write_report
from softjaccard.evaluation.results import EvaluationResult
from softjaccard.metrics import fine_grained_iou

HISTORY = {"train/loss": [0.9, 0.5, 0.41], "val/loss": ["", 0.7, 0.6], "val/mIoU_D": ["", 0.25, 0.375]}


def make_run(folder: Path, result: EvaluationResult, *, history: dict[str, list[Any]] | None = HISTORY) -> Path:
    folder.mkdir(parents=True)
    result.save(folder / "evaluation" / "test")
    if history is not None:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "epoch", *history])
            writer.writerows([10 * step, 0, *row] for step, row in enumerate(zip(*history.values(), strict=True)))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / "plain", made_up()), make_run(root / "better & <i>bold", made_up(seed=1, skill=3.0))]


def page_of(*runs: Path) -> ElementTree.Element:
    output = runs[0].parent / "pages" / "report.html"
    write_report(runs, output)
    return ElementTree.fromstring(output.read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>"))


def section(page: ElementTree.Element, name: str) -> ElementTree.Element:
    found = page.find(f".//section[@id='{name}']")
    assert found is not None, name
    return found


def text(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def rows_of(element: ElementTree.Element) -> dict[str, list[str]]:
    """Cells by the text of the row's head up to its explanation."""
    rows = {}
    for row in element.iterfind(".//tbody/tr"):
        head, *cells = row
        rows[(head.text or "") + "".join(text(c) + (c.tail or "") for c in head if c.get("class") != "small")] = [
            text(cell) for cell in cells
        ]
    return rows


def test_the_scores_are_the_stored_ones(runs: list[Path]) -> None:
    results = [made_up(), made_up(seed=1, skill=3.0)]
    rows = rows_of(section(page_of(*runs), "scores"))
    shown = ["mIoUD", "mIoUI", "mIoUC", "mIoUC, worst 5 %", "Acc", "ECE", "NLL", "loss", "mDiceI"]
    assert list(rows) == shown
    assert [rows.pop(name) for name in shown[-2:]] == [
        ["0.1235", "0.1235"],
        [f"{100 * result.scores['mDice_I']:.1f}" for result in results],
    ]
    names = ("mIoU_D", "mIoU_I", "mIoU_C", "mIoU_C_worst5", "Acc", "ECE", "NLL")
    for name, row in zip(names, rows.values(), strict=True):
        digits, factor = (4, 1) if name == "NLL" else (1, 100)
        number = rf"(\d+\.\d{{{digits}}})"
        for cell, result in zip(row, results, strict=True):
            value, low, high = map(float, re.fullmatch(rf"{number}{number} to {number}", cell).groups())
            assert value == float(f"{factor * result.scores[name]:.{digits}f}")
            assert low <= value <= high
            assert low < high


def test_scores_against_votes_have_rows_of_their_own(runs: list[Path], tmp_path: Path) -> None:
    plain = made_up()
    votes = {"mSoftDice_D_votes": 0.654, "ECE_votes": 0.0321, "KL_votes": 0.2345, "SCE_votes": 0.0567}
    run = make_run(tmp_path / "rated", replace(plain, scores={**plain.scores, **votes}))
    scores = section(page_of(runs[0], run), "scores")
    rows = rows_of(scores)
    names = list(rows)
    first = names.index("Against all annotators' votes; above, against the label of most votes")
    assert names[first - 1 : first + 4] == ["loss", names[first], "mSoftDiceD, votes", "ECE, votes", "KL, votes"]
    assert [rows[name] for name in names[first : first + 4]] == [
        [],
        ["not measured", "65.4"],
        ["not measured", "3.2"],
        ["not measured", "0.2345"],
    ]
    assert rows["SCE, votes"] == ["not measured", "5.7"]  # behind the fold
    assert "votes" not in text(section(page_of(runs[0]), "scores"))


def test_the_differences_are_those_of_the_stored_scores(runs: list[Path]) -> None:
    results = [made_up(), made_up(seed=1, skill=3.0)]
    differences = section(page_of(*runs), "differences")
    rows = rows_of(differences)
    names = ("mIoU_D", "mIoU_I", "mIoU_C", "mIoU_I_worst5", "mIoU_C_worst5", "mDice_D", "mAcc_D", "Acc")
    tables = [fine_grained_iou(result.counts) for result in results]
    true = [100 * (tables[1][name] - tables[0][name]).item() for name in names]
    true.append(100 * (results[1].scores["ECE"] - results[0].scores["ECE"]))
    assert list(rows)[3:] == ["mIoUI, worst 5 %", "mIoUC, worst 5 %", "mDiceD", "mAccD", "Acc", "ECE"]
    for expected, (cell, verdict, _) in zip(true, rows.values(), strict=True):
        value, low, high = map(float, re.fullmatch(r"([+-]\d+\.\d\d)([+-]\d+\.\d\d) to ([+-]\d+\.\d\d)", cell).groups())
        assert value == float(f"{expected:.2f}")
        assert low <= value <= high
        assert ("higher" in verdict, "lower" in verdict) == (low > 0, high < 0)
    assert rows["mIoUD"][1] == "higher, better"
    assert "better & <i>bold less plain" in text(differences)


def test_scores_against_votes_are_compared(tmp_path: Path) -> None:
    results = [rated(skill=0.5), rated(seed=1, skill=3.0)]
    runs = [make_run(tmp_path / str(number), result) for number, result in enumerate(results)]
    rows = rows_of(section(page_of(*runs), "differences"))
    assert [name for name in rows if "votes" in name] == [
        "mSoftIoUD, votes", "mSoftDiceD, votes", "mSoftDiceI, votes", "TV, votes", "ECE, votes", "Brier, votes",
    ]  # fmt: skip
    for name in ("mSoftDice_D", "TV", "Brier"):
        first, second = (result.scores[f"{name}_votes"] for result in results)
        cell, verdict, _ = rows[f"{name.replace('_', '')}, votes"]
        assert cell.startswith(f"{100 * (second - first):+.2f}")
        assert verdict == ("higher, better" if name == "mSoftDice_D" else "lower, better")
    scores = rows_of(section(page_of(*runs), "scores"))
    assert " to " in scores["KL, votes"][0]
    assert " to " in scores["mSoftDiceD, votes"][1]


def test_a_run_against_itself_is_not_separable_from_zero(runs: list[Path]) -> None:
    for cell, verdict, _ in rows_of(section(page_of(runs[0], runs[0]), "differences")).values():
        assert (cell, verdict) == ("+0.00+0.00 to +0.00", "not separable from zero")


def test_a_lower_calibration_error_is_better(runs: list[Path], tmp_path: Path) -> None:
    perfect = made_up()
    sums = perfect.calibration.clone()
    sums[:, 1] = sums[:, 2]
    run = make_run(tmp_path / "sure", replace(perfect, calibration=sums, scores={**perfect.scores, "ECE": 0.0}))
    assert rows_of(section(page_of(runs[0], run), "differences"))["ECE"][1] == "lower, better"
    assert rows_of(section(page_of(run, runs[0]), "differences"))["ECE"][1] == "higher, worse"


def test_the_bars_are_the_stored_scores(runs: list[Path]) -> None:
    results = [made_up(), made_up(seed=1, skill=3.0)]
    table = section(page_of(*runs), "iou-of-each-class")
    rows = {text(row[0]): row for row in table.iterfind(".//tbody/tr")}
    assert list(rows) == list(CLASSES)
    for name in CLASSES[:3]:
        bars = rows[name].findall(".//div")
        assert [text(bar) for bar in bars] == [f"{100 * result.scores[f'IoU_D/{name}']:.1f}" for result in results]
        shares = [float(re.search(r"--share: ([\d.]+)", bar[0].get("style")).group(1)) for bar in bars]
        assert shares == pytest.approx([result.scores[f"IoU_D/{name}"] for result in results], abs=1e-4)
    assert text(rows["never seen"][1]) == "neither labelled nor predicted" * 2


def test_the_curves_are_the_logged_values(runs: list[Path]) -> None:
    figures = section(page_of(runs[0]), "training").findall(".//figure")
    assert [text(figure[0]) for figure in figures] == ["loss", "mIoUD, %"]
    titles = [[text(title) for title in figure.iterfind(".//title")] for figure in figures]
    assert titles == [
        ["plain, val: 0.7 at 10", "plain, val: 0.6 at 20"],
        ["plain, val: 25 at 10", "plain, val: 37.5 at 20"],
    ]
    train, _ = figures[0].findall(".//polyline")
    heights = [float(point.split(",")[1]) for point in train.get("points").split()]
    assert len(heights) == 3
    assert (heights[1] - heights[0]) / (heights[2] - heights[0]) == pytest.approx((0.9 - 0.5) / (0.9 - 0.41), abs=0.01)


def test_many_steps_are_thinned_and_infinite_ones_left_out(tmp_path: Path) -> None:
    values = [*(step / 5000 for step in range(5000)), math.inf, math.nan]
    run = make_run(tmp_path / "long", made_up(), history={"train/loss": values})
    (line,) = section(page_of(run), "training").findall(".//polyline")
    points = np.array([point.split(",") for point in line.get("points").split()], dtype=float)
    assert len(points) == 300
    slopes = np.diff(points[:, 1]) / np.diff(points[:, 0])
    assert slopes == pytest.approx(slopes.mean(), rel=0.3)


def test_the_reliability_diagram_shows_the_stored_bins(runs: list[Path]) -> None:
    pixels, confidence, hits = made_up().calibration.sum(0).tolist()
    calibration = section(page_of(runs[0]), "calibration")
    titles = [text(title) for title in calibration.iterfind("./div//circle/title")]
    expected = [
        f"confidence {i / 10:.2f} to {(i + 1) / 10:.2f}: mean {100 * confidence[i] / pixels[i]:.1f} %, "
        f"hits {100 * hits[i] / pixels[i]:.1f} %, {100 * pixels[i] / sum(pixels):.1f} % of the pixels"
        for i in range(10)
        if pixels[i]
    ]
    assert titles == expected
    assert len(titles) > 4
    classes = calibration.findall("details//figure")
    assert [text(figure[0]) for figure in classes] == list(CLASSES[:3])
    pixels, confidence, _ = made_up().class_calibration[1, :, 9].tolist()
    assert f"1.00: mean {100 * confidence / pixels:.1f} %" in text(classes[1].findall(".//circle/title")[-1])


def test_the_confusion_matrix_shows_the_stored_counts(runs: list[Path]) -> None:
    counts = made_up().confusion
    cells = section(page_of(runs[0]), "confusion").findall(".//table[@class='confusion']/tbody/tr/td")
    assert len(cells) == len(CLASSES) ** 2
    for number, cell in enumerate(cells):
        row, column = divmod(number, len(CLASSES))
        count, total = int(counts[row, column]), int(counts[row].sum())
        title = f"label {CLASSES[row]}, predicted {CLASSES[column]}: {count} pixels, "
        of = f"{100 * count / total:.1f} % of {CLASSES[row]}" if total else f"no pixel is labelled {CLASSES[row]}"
        assert cell.get("title") == title + of
        assert text(cell) == (f"{100 * count / total:.0f}" if total and count / total >= 0.005 else "")


def test_a_matrix_of_many_classes_shows_the_frequent_ones(tmp_path: Path) -> None:
    small = made_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MOST_CLASSES", 2)
        confusion = section(page_of(make_run(tmp_path / "run", small)), "confusion")
    frequent = sorted(small.confusion.sum(1).argsort(descending=True)[:2].tolist())
    assert [text(row[0]).strip() for row in confusion.iterfind(".//tbody/tr")] == [CLASSES[i] for i in frequent]
    assert "The 2 most frequent of 4 classes" in text(confusion)


def test_the_worst_images_are_the_stored_pictures(runs: list[Path]) -> None:
    result = made_up()
    worst = section(page_of(runs[0]), "worst-images")
    captions = [text(caption) for caption in worst.iterfind(".//figcaption")]
    hits, labelled = result.counts[..., 0], result.counts[..., 0] + result.counts[..., 2]
    ratios = (hits / result.counts.sum(-1)).tolist()
    iou = [np.mean([ratios[i][c] for c in range(4) if labelled[i, c]]) for i in range(2)]
    accuracy = hits[0].sum().item() / labelled[0].sum().item()
    expected = [(1, iou[1]), (0, iou[0]), (0, accuracy)]
    assert captions == [f"image <{row}>: {100 * score:.1f} %" for row, score in expected]
    panels = {img.get("alt"): base64.b64decode(img.get("src").partition(",")[2]) for img in worst.iterfind(".//img")}
    assert len(panels) == 8
    for row in (0, 1):
        picture = result.pictures[row]
        assert panels[f"image of image <{row}>"] == picture.image
        label, prediction, errors = (
            np.array(Image.open(io.BytesIO(panels[f"{what} of image <{row}>"])))
            for what in ("label", "prediction", "errors")
        )
        colours = np.array([*COLOURS, (0, 0, 0)], dtype=np.uint8)
        true, predicted = (np.array(Image.open(io.BytesIO(data))) for data in (picture.label, picture.prediction))
        np.testing.assert_array_equal(label, colours[true])
        np.testing.assert_array_equal(prediction, colours[predicted])
        assert errors[true == 4].max() < 100  # not labelled: black, but for JPEG's blur
        wrong = (true != predicted) & (true != 4)
        redness = errors[..., 0].astype(int) - errors[..., 2]
        assert redness[wrong].mean() > redness[(true == predicted)].mean() + 50


def test_runs_on_other_images_are_not_compared(runs: list[Path], tmp_path: Path) -> None:
    base = made_up()
    others = {
        "different images (6 and 3, 3 of them in both)": made_up(images=3),
        "labels of the images differ": replace(base, counts=base.counts + 1),
        "different classes": replace(base, classes=("a", "b", "c", "d")),
    }
    for number, (words, result) in enumerate(others.items()):
        page = page_of(runs[0], make_run(tmp_path / f"run {number}", result))
        differences = section(page, "differences")
        assert words in text(differences)
        assert not rows_of(differences)
        assert section(page, "scores") is not None
    assert len(section(page, "iou-of-each-class").findall(".//table")) == 2  # of both sets of classes


def test_one_run_has_no_differences(runs: list[Path]) -> None:
    page = page_of(runs[0])
    sections = [found.get("id") for found in page.iterfind(".//section")]
    assert sections == ["scores", "iou-of-each-class", "training", "calibration", "confusion", "worst-images"]
    assert [link.get("href") for link in page.iterfind(".//nav/a")] == [f"#{name}" for name in sections]


def test_many_runs(runs: list[Path], tmp_path: Path) -> None:
    more = [make_run(tmp_path / f"run {number}", made_up(seed=number)) for number in range(10)]
    page = page_of(*runs, *more)
    assert len(rows_of(section(page, "scores"))["mIoUD"]) == 12
    assert len(section(page, "differences").findall(".//h3")) == 11


def test_missing_parts_are_said(runs: list[Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", made_up(worst={}, pictures={}), history=None)
    page = page_of(run)
    assert text(section(page, "training")).endswith("No metrics.csv, so no curves: bare.")
    assert not section(page, "training").findall(".//figure")
    assert "No pictures were stored." in text(section(page, "worst-images"))
    both = section(page_of(runs[0], run), "training")
    assert "no curves: bare." in text(both)
    assert len(both.findall(".//figure")) == 2
    empty = make_run(tmp_path / "empty", made_up(), history={"train/other": [1.0], "val/loss": [math.nan]})
    assert "The logs hold no values." in text(section(page_of(empty), "training"))


def test_all_text_is_escaped_and_nothing_comes_from_elsewhere(runs: list[Path]) -> None:
    page_of(*runs)
    html = (runs[0].parent / "pages" / "report.html").read_text(encoding="utf-8")
    assert '<b>"sign"</b>' in unescape(html)
    for raw in ('<b>"sign"</b>', "<i>bold", "image <0>", "tree & bush"):
        assert raw not in html
    assert not re.search(r"<script|<link|<iframe|javascript:|@import|url\(|\son\w+=", html)
    assert not re.search(r"https?:|//", re.sub(r"base64,[\w+/=]+", "", html))
    assert all(source.startswith(("data:image/", "#")) for source in re.findall(r'(?:src|href)="([^"]*)"', html))
    assert "default-src 'none'" in unescape(html)


def test_names_that_would_be_the_same_are_paths(tmp_path: Path) -> None:
    pair = [make_run(tmp_path / name / "run", made_up()) for name in ("a", "b")]
    assert [text(cell) for cell in page_of(*pair).iterfind(".//header//tbody/tr/th")] == [str(path) for path in pair]


def test_bad_runs_are_named(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untested = tmp_path / "untested"
    untested.mkdir()
    damaged = make_run(tmp_path / "damaged", made_up())
    (damaged / "metrics.csv").write_text("step,train/loss\n1,many\n")
    for run, words in (
        (tmp_path / "nowhere", ["no run in", "nowhere"]),
        (untested, ["untested has no test result", f"`softjaccard test {untested}`"]),
        (damaged, ["metrics.csv", "many"]),
    ):
        output = tmp_path / "report.html"
        assert main(["report", str(runs[0]), str(run), "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(word in error for word in words), error
        assert not output.exists()
    with pytest.raises(InputError, match="--output"):
        write_report([runs[0]], runs[0] / "metrics.csv" / "report.html")


MEASURE = """
<script>
onload = () => {
  document.querySelectorAll("details").forEach(details => details.open = true);
  const width = document.documentElement.clientWidth;
  const outside = [...document.body.querySelectorAll("*")].filter(
    element => element.getBoundingClientRect().right > width + 0.5 && !element.closest(".scroll *"));
  const box = element => { const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const fonts = [...document.querySelectorAll("svg text")].map(
    text => text.getScreenCTM().a * parseFloat(getComputedStyle(text).fontSize));
  parent.postMessage({
    width, scrollWidth: document.documentElement.scrollWidth, outside: outside.map(element => element.outerHTML),
    panels: [...document.querySelectorAll("section, figure, svg, img, .bars, .scroll")].map(box),
    squeezed: [...document.querySelectorAll("th, td")].filter(
      cell => cell.offsetHeight > 6 * cell.offsetWidth).map(cell => cell.outerHTML),
    smallestText: Math.min(...fonts),
  }, "*");
};
</script>
"""
FRAMES = """
<iframe name="1280" style="width: 1280px; height: 900px"></iframe><iframe name="390" style="width: 390px"></iframe>
<pre></pre>
<script>
const found = [];
onmessage = message => {
  if (found.push(message.data) == 2) document.querySelector("pre").textContent = JSON.stringify(found);
};
document.querySelectorAll("iframe").forEach(frame => frame.src = "PAGE");
</script>
"""


def test_a_browser_shows_all_of_it_at_two_widths(runs: list[Path], tmp_path: Path) -> None:
    page_of(*runs)
    html = (runs[0].parent / "pages" / "report.html").read_text(encoding="utf-8")
    copy = tmp_path / "copy.html"
    copy.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", html).replace("</body>", MEASURE + "</body>"))
    frames = tmp_path / "frames.html"
    frames.write_text(FRAMES.replace("PAGE", copy.as_uri()))
    dump = run_chromium(frames, tmp_path, "--dump-dom")
    wide, narrow = sorted(json.loads(unescape(re.search("<pre>(.*?)</pre>", dump).group(1))), key=lambda m: -m["width"])
    assert [m["width"] for m in (wide, narrow)] == [1280, 390]
    for measured in (wide, narrow):
        assert measured["scrollWidth"] <= measured["width"]
        assert measured["outside"] == []
        assert measured["squeezed"] == []
        assert measured["smallestText"] > 10
    height = math.ceil(max(bottom for _, _, _, bottom in wide["panels"]))
    screenshot = tmp_path / "screenshot.png"
    run_chromium(copy, tmp_path, f"--window-size=1280,{height}", f"--screenshot={screenshot}")
    pixels = np.asarray(Image.open(screenshot).convert("RGB"), dtype=float)
    assert pixels.shape == (height, 1280, 3)
    for box in wide["panels"]:
        left, top, right, bottom = map(round, box)
        assert min(right - left, bottom - top) >= 15
        assert pixels[top + 3 : bottom - 3, left + 3 : right - 3].std() > 2, box
