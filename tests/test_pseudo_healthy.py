"""Healthy volumes given a volume with an anomaly: recipe, route, map, and trainings."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from lesion_masks import MASKS
from tiny_runs import figures, tiny, write_data

import volumediff
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.maps.matched import Matched, matched
from volumediff.anomaly.method_files import read_method
from volumediff.data.corruptions import Corruption
from volumediff.data.mirror import mirrored
from volumediff.recipes._base import Subject
from volumediff.recipes.pseudo_healthy import PseudoHealthy, recoloured
from volumediff.training.loop import train

SHAPE = (12, 8, 8)


@dataclass(frozen=True)
class Dark(Corruption):
    """A dark cube on one side."""

    kind: ClassVar[str] = "dark"

    def __call__(self, x, foreground, *, donor, spacing_mm, key):
        amount = torch.zeros_like(x[:1])
        amount[:, 2:4, 3:5, 3:5] = 1
        return torch.where(amount > 0, -0.9, x), amount


def subject():
    g = torch.Generator().manual_seed(1)
    x = torch.rand((1, *SHAPE), generator=g) * 1.6 - 0.8
    foreground = torch.zeros((1, *SHAPE), dtype=torch.bool)
    foreground[:, 1:-3, 1:-1, 1:-1] = True
    x = torch.where(foreground, x, -1.0)
    return Subject(x, None, foreground, donor=lambda key: x)


def test_the_target_is_healthy_and_the_condition_has_the_anomaly():
    one = subject()
    target = PseudoHealthy(Dark(), sound=0.0).target(one, atlas=None, key=1)
    assert torch.equal(target.x, one.x)
    (image,) = target.images
    assert bool((image[:, 2:4, 3:5, 3:5] == -0.9).all())
    assert int((image != one.x).sum()) == 8
    sound = [
        torch.equal(
            PseudoHealthy(Dark(), sound=0.5).target(one, atlas=None, key=k).images[0], one.x
        )
        for k in range(60)
    ]
    assert 18 < sum(sound) < 42


def test_the_second_image_is_the_other_side():
    one = subject()
    recipe = PseudoHealthy(Dark(), mirror=True, sound=0.0)
    (image,) = recipe.target(one, atlas=None, key=1).images
    assert image.shape == (2, *SHAPE)
    # planes 1 to 8 are the foreground: plane 1 + i is that of 8 - i
    for i in range(8):
        torch.testing.assert_close(image[1, 1 + i], image[0, 8 - i])
    assert bool((image[1, [0, 9, 10, 11]] == -1).all()), "no signal beyond"
    inside = one.foreground[None]
    twice = mirrored(mirrored(one.x[None] + 1, inside), inside) - 1
    torch.testing.assert_close(twice, one.x[None])


def test_other_contrasts_are_a_curve_of_the_signal():
    one = subject()
    made = [recoloured(one.x, one.foreground, k) for k in range(20)]
    falls = 0
    for x in made:
        assert bool((x[~one.foreground] == -1).all())
        assert -1 <= float(x.min()) <= float(x.max()) <= 1
        pairs = sorted(
            zip(one.x[one.foreground].tolist(), x[one.foreground].tolist(), strict=True)
        )
        steps = torch.tensor([b[1] - a[1] for a, b in pairwise(pairs)])
        gaps = torch.tensor([b[0] - a[0] for a, b in pairwise(pairs)])
        assert bool((steps.abs() <= 4 * gaps + 1e-5).all()), "equal signals stay equal"
        falls += float(steps.min()) < -1e-3
    assert falls > 15, "brightness may turn round"
    recipe = PseudoHealthy(Dark(), contrast=1.0, sound=0.0)
    target = recipe.target(one, atlas=None, key=3)
    assert torch.equal(target.x, one.x), "what is restored stays in its own contrast"
    assert float((target.images[0] != one.x)[one.foreground].float().mean()) > 0.9


def test_matching_undoes_a_change_of_contrast_and_keeps_lesions():
    g = torch.Generator().manual_seed(2)
    healthy = torch.rand((1, 1, 24, 24, 24), generator=g) * 1.8 - 0.9
    inside = torch.ones_like(healthy, dtype=torch.bool)
    x = 0.3 - 0.5 * healthy  # inverted, as T2w is of T1w
    x[..., 4:9, 4:9, 4:9] = 0.9
    place = {"foreground": inside, "spacing_mm": (1.0, 1.0, 1.0)}
    plain, near = L1()(x, healthy, **place), Matched(L1())(x, healthy, **place)
    lesion = torch.zeros_like(inside)
    lesion[..., 4:9, 4:9, 4:9] = True
    assert float(near[~lesion].mean()) < 0.02
    assert float(near[lesion].mean()) > 0.4
    assert float(plain[~lesion].mean()) > 0.3
    u = torch.linspace(-1, 1, 400)
    torch.testing.assert_close(matched(u, u, 16)[20:-20], u[20:-20], atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sound": 1.0}, r"sound: expected a share in \[0, 1\)"), ({"contrast": 2.0}, "contrast: ")],
)
def test_impossible_shares_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PseudoHealthy(**options)


RUNS = {
    "una": ("recipe={name: pseudo_healthy, corruption: fluid, mirror: true, contrast: 0.5}",),
    "fluid_ddpm": ("recipe={name: pseudo_healthy, corruption: fluid}",),
    "synthstroke": (
        f"recipe={{name: synthetic_anomalies, corruption: {{name: pasted, masks: {MASKS}}}}}",
        "losses=[{name: dice}]",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_method_trains_and_localizes(name, tmp_path):
    words = (*RUNS[name], "kernel.schedule={name: cosine, zero_terminal_snr: true}")
    root = write_data(tmp_path / "data", cases=12)
    split = "data.split={validation: 0.2, calibration: 0.5}"
    train(tiny(root, tmp_path / "run", *words, split, "optim.steps=2"))
    assert figures(tmp_path / "run")
    run = volumediff.load(tmp_path / "run")
    quick = {"sampler": {"steps": 2}} if name == "fluid_ddpm" else {}
    result = run.localize(root / "sub-01_T1w.nii.gz", method=name, **quick)
    assert result.map.shape == (8, 8, 8)
    assert result.map.max() > 0
    assert (result.pseudo_healthy is None) == (name == "synthstroke")
    assert (result.uncertainty is None) == (name == "una")


def test_other_runs_are_refused():
    from volumediff.contracts.scenes import models

    method = read_method("una")
    usual = next(iter(models()))
    with pytest.raises(ValueError, match=r"recipe pseudo_healthy, got healthy; .*train with rec"):
        method.check(usual)
