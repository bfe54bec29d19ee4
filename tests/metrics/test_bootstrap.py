"""Bootstrap intervals against plain resampling, and against what is known of means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from softjaccard.metrics import bootstrap as module
from softjaccard.metrics import bootstrap_interval, paired_bootstrap, score_names, table_score


def random_table(images: int = 12, seed: int = 0) -> Tensor:
    """Counts of three classes, of which each image has some; the last class is rare."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 50, (images, 3, 3), generator=generator)
    counts[torch.rand(images, 3, generator=generator) < torch.tensor([0.1, 0.3, 0.8])] = 0
    return counts


@pytest.mark.parametrize("name", list(score_names((5, 30))))
def test_each_draw_has_the_score_of_its_images(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "_CHUNK", 3 * 12 * 4)  # several draws at once, and several times
    runs = torch.stack((random_table(), random_table(seed=1)))
    drawn = torch.randint(12, (10, 12), generator=torch.Generator().manual_seed(7))
    expected = torch.tensor([[table_score(run[draw], name) for run in runs] for draw in drawn]).double().mean(1)
    found = bootstrap_interval(runs, name, resamples=10, seed=7)
    assert found.score == pytest.approx(sum(table_score(run, name).item() for run in runs) / 2, abs=1e-12)
    low, high = expected.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
    assert low < high


@pytest.mark.parametrize("options", [{"binary": True}, {"classes": "all"}, {"classes": [1]}])
def test_options_reach_the_score(options: dict) -> None:
    counts = random_table()[:, :2]
    found = bootstrap_interval(counts, "mIoU_I", resamples=5, **options)
    assert found.score == table_score(counts, "mIoU_I", **options)
    assert found.score != table_score(counts, "mIoU_I")


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    images = 400
    hits = torch.randint(20, 81, (images,), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(images, 2, 3, dtype=torch.int64)
    counts[:, 1, 0], counts[:, 1, 2] = hits, 100 - hits
    found = bootstrap_interval(counts, "mIoU_I", resamples=4000)
    error = (hits / 100).double().std().item() / math.sqrt(images)
    assert found.low == pytest.approx(found.score - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.score + 1.96 * error, abs=0.1 * error)


def test_the_same_seed_gives_the_same() -> None:
    counts = random_table()
    first, again, other = (bootstrap_interval(counts, "mIoU_D", resamples=50, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def better_and_worse(images: int = 30) -> tuple[Tensor, Tensor]:
    """Two runs, of which the second has a few hits less in most images."""
    better = random_table(images, seed=3)
    lost = torch.minimum(better[..., 0], torch.arange(images).unsqueeze(1) % 4)
    worse = better.clone()
    worse[..., 0] -= lost
    worse[..., 2] += lost
    return better, worse


@pytest.mark.parametrize("name", ["mIoU_D", "mIoU_C", "mDice_I_worst5"])
def test_the_difference_of_pairs(name: str) -> None:
    a, b = better_and_worse()
    found = paired_bootstrap(a, b, name, resamples=99, seed=5)
    drawn = torch.randint(30, (99, 30), generator=torch.Generator().manual_seed(5))
    differences = torch.tensor([table_score(a[draw], name) - table_score(b[draw], name) for draw in drawn]).double()
    assert found.difference == pytest.approx((table_score(a, name) - table_score(b, name)).item(), abs=1e-12)
    low, high = differences.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
    tail = min((differences <= 0).sum().item(), (differences >= 0).sum().item())
    assert found.p_value == pytest.approx(min(1, 2 * (tail + 1) / 100))
    swapped = paired_bootstrap(b, a, name, resamples=99, seed=5)
    assert (swapped.difference, swapped.low, swapped.high) == pytest.approx(
        (-found.difference, -found.high, -found.low)
    )
    assert swapped.p_value == found.p_value


def test_p_values() -> None:
    a, b = better_and_worse()
    assert paired_bootstrap(a, b, "mIoU_D", resamples=199).p_value == 0.01
    assert paired_bootstrap(a, a, "mIoU_D", resamples=199).p_value == 1
    noise = random_table(30, seed=9)
    assert paired_bootstrap(random_table(30, seed=8), noise, "mIoU_I", resamples=199).p_value > 0.05


def test_images_are_matched_by_their_ids() -> None:
    a, b = better_and_worse()
    ids = torch.arange(30) * 3
    order_a, order_b = (torch.randperm(30, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = paired_bootstrap(a, b, "mIoU_I", resamples=20)
    found = paired_bootstrap(a[order_a], b[order_b], "mIoU_I", ids_a=ids[order_a], ids_b=ids[order_b], resamples=20)
    assert found == expected
    assert paired_bootstrap(a[order_a], b[order_b], "mIoU_I", resamples=20) != expected


def test_several_seeds_take_the_same_images() -> None:
    """Runs that differ by the same in every image: if seeds drew images on their own, the difference would vary."""
    hits = torch.arange(10, 90).repeat(3, 1)
    a = torch.zeros(3, 80, 2, 3, dtype=torch.int64)
    a[..., 1, 0], a[..., 1, 2] = hits, 100 - hits
    b = a[:2].clone()
    b[..., 1, 0] -= 5
    b[..., 1, 2] += 5
    found = paired_bootstrap(a, b, "mIoU_I", resamples=50)
    assert (found.difference, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    spread = bootstrap_interval(a, "mIoU_I", resamples=50)
    alone = bootstrap_interval(a[0], "mIoU_I", resamples=50)
    assert (spread.low, spread.high) == pytest.approx((alone.low, alone.high))


def test_what_cannot_be_compared_is_refused() -> None:
    a, b = better_and_worse()
    ids = torch.arange(30)
    with pytest.raises(ValueError, match=r"counts_b: .*\(30, 3, 3\), got \(29, 3, 3\)"):
        paired_bootstrap(a, b[1:], "mIoU_D")
    with pytest.raises(
        ValueError, match="ids_b: expected the images of ids_a; 2 are in one of the two only, such as 0"
    ):
        paired_bootstrap(a, b, "mIoU_D", ids_a=ids, ids_b=ids + 1)
    with pytest.raises(ValueError, match="ids_b: expected an id for each of 30 images, got NoneType"):
        paired_bootstrap(a, b, "mIoU_D", ids_a=ids)
    with pytest.raises(ValueError, match="ids_a: expected each image's own id"):
        paired_bootstrap(a, b, "mIoU_D", ids_a=ids.clamp(min=1), ids_b=ids)
    with pytest.raises(ValueError, match="ids_a: expected each image's own id"):
        paired_bootstrap(a, b, "mIoU_D", ids_a=ids - 1, ids_b=ids)
    with pytest.raises(ValueError, match="counts: expected at least one image"):
        bootstrap_interval(a[:0], "mIoU_D")
    with pytest.raises(TypeError, match="counts: expected integers"):
        bootstrap_interval(a.double(), "mIoU_D")
    with pytest.raises(ValueError, match="score: expected Acc"):
        bootstrap_interval(a, "IoU_D")
    with pytest.raises(ValueError, match="resamples: expected at least 1"):
        bootstrap_interval(a, "mIoU_D", resamples=0)
