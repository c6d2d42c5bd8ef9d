"""FlowLet: its network, its four flows and its sampling, from a checkpoint to volumes."""

import json
import math

import pytest
import safetensors.torch
import torch
from flowlet_reference import euler, forward, published
from guided_reference import haar, inverse_haar
from tiny_runs import load_run

from volumediff.condition import Condition
from volumediff.config import build, overridden
from volumediff.errors import DataError, UsageError
from volumediff.importers._base import ForeignCheckpoint, checked
from volumediff.importers._published import Published
from volumediff.kernels.gaussian import Gaussian
from volumediff.networks.flowlet import FlowLet
from volumediff.samplers.ddim import DDIM
from volumediff.samples.statistics import Statistics
from volumediff.schedules.linear import LinearSchedule
from volumediff.schedules.rectified import Rectified
from volumediff.schedules.trigonometric import Trigonometric
from volumediff.schedules.vp_sde import VPSDE
from volumediff.settings.run_config import parse
from volumediff.tasks import build_task
from volumediff.training.imported import import_run

NET = {"widths": (4, 8, 12), "attends": (1, 2)}
RANGES = {"Age": (20.0, 80.0)}
WORDS = ("network.heads=2", "network.groups=2")


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def configured(state, *words, axes="RAS", ranges=RANGES, files=None):
    """Importer, source and configuration of a state dict."""
    importer = build("importer", {"name": "flowlet", "axes": axes, "ranges": ranges})
    source = ForeignCheckpoint(state, published=Published(files))
    return importer, source, overridden(importer.config(source), words)


def imported(state, *words, **more):
    """The model of a state dict in float64, through the importer and the run's own assembly."""
    importer, source, tree = configured(state, *words, **more)
    importer.scaling(source)
    task = build_task(parse(tree))
    shapes = task.shapes()
    task.module.double()
    task.load(checked(importer, source, shapes))
    task.module.dtype = torch.float64
    return task.module.eval()


# --- what it computes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (NET, (8, 4, 4)),
        ({"widths": (8,), "attends": ()}, (3, 5, 2)),
        ({"widths": (4, 8), "attends": (0,), "blocks": 1, "names": ("Age", "Sex")}, (4, 6, 2)),
    ],
)
def test_the_network_is_the_published_one(options, size):
    state = published(**options)
    names = options.get("names", ("Age",))
    model = imported(state, *WORDS, ranges=dict.fromkeys(names, (0.0, 1.0)))
    z, t, told = normal(2, 8, *size), torch.tensor([0.3, 1.0]).double(), normal(2, len(names))
    of = dict(zip(names, told.T, strict=True))
    expected = forward(state, z, 1 - t, of, heads=2, groups=2)
    found = model.network(z, t, Condition(scalars=told))
    torch.testing.assert_close(found, -expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 0.1
    # each thing it is told counts
    for other in (told + 0.5, told.flip(0)):
        assert (model.network(z, t, Condition(scalars=other)) - found).abs().max() > 1e-3


@pytest.mark.parametrize("axes", ["LAS", "RAS", "RPI"])
def test_volumes_turn_with_the_axes_of_its_arrays(axes):
    state = published(**NET)
    model = imported(state, *WORDS, axes=axes)
    dims = [dim for dim, a, b in zip((2, 3, 4), axes, "RAS", strict=True) if a != b]
    x, age = normal(1, 1, 16, 8, 8), torch.tensor([[0.4]]).double()
    t = torch.tensor([0.35]).double()
    expected = forward(state, haar_of(x), 1 - t, {"Age": age[:, 0]}, heads=2, groups=2)
    z = model.encode(x.flip(dims))
    found = model.decode(model.network(z, t, Condition(scalars=age)), x.shape[2:])
    torch.testing.assert_close(found.flip(dims), -back(expected), rtol=1e-9, atol=1e-9)


def haar_of(x):
    """The coefficients as FlowLet has them: those of the reference, without its division by 3."""
    z = haar(x)
    return torch.cat((3 * z[:, :1], z[:, 1:]), 1)


def back(z):
    return inverse_haar(torch.cat((z[:, :1] / 3, z[:, 1:]), 1))


FLOWS = {
    "rectified": (Rectified(), lambda t, x, e: (t * x + (1 - t) * e, x - e)),
    "cfm": (
        Rectified(),
        lambda t, x, e: (t * x + (1 - t) * e, (x - (t * x + (1 - t) * e)) / (1 - t)),
    ),
    "trigonometric": (
        Trigonometric(),
        lambda t, x, e: (
            math.cos(math.pi / 2 * t) * e + math.sin(math.pi / 2 * t) * x,
            math.pi / 2 * (math.cos(math.pi / 2 * t) * x - math.sin(math.pi / 2 * t) * e),
        ),
    ),
    "vp_diffusion": (VPSDE(beta_first=0.1, beta_last=20.0), lambda t, x, e: vp(t, x, e)),
}


def vp(t, x, e):
    """Lipman et al. (2023), eq. 18 and 19, as FlowLet writes them."""
    s = 1 - t
    area = 0.1 * s + 19.9 * s**2 / 2
    z = math.exp(-area / 2) * x + math.sqrt(1 - math.exp(-area)) * e
    rate = (0.1 + 19.9 * s) / 2
    toward = (math.exp(-area) * z - math.exp(-area / 2) * x) / (1 - math.exp(-area))
    return z, -rate * toward


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.93])
def test_each_flow_is_ours_backwards(name, t):
    schedule, theirs = FLOWS[name]
    x, noise = normal(1, 8, 2, 2, 2), normal(1, 8, 2, 2, 2, seed=1)
    z, velocity = theirs(t, x, noise)
    kernel = Gaussian(schedule, prediction="u")
    ours = torch.tensor([1 - t], dtype=torch.float64)
    torch.testing.assert_close(kernel.corrupt(x, ours, noise), z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel.target(x, ours, noise), -velocity, rtol=1e-9, atol=1e-9)
    files = {"config.json": {"flow_type": name}}
    tree = configured(published(**NET), files=files)[2]
    assert build("schedule", tree["kernel"]["schedule"]) == schedule


def test_the_equation_is_the_limit_of_its_chain():
    t = torch.tensor([0.1, 0.5, 1.0]).double()
    errors = []
    for levels in (1000, 10_000):
        chain = LinearSchedule(levels=levels, beta_first=0.1 / levels, beta_last=20.0 / levels)
        errors.append((chain.log_alpha(t) - VPSDE().log_alpha(t)).abs().max())
    assert errors[1] < errors[0] / 8  # of first order in the step
    assert errors[1] < 0.02
    for pair in ((0.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="0 < beta_first <= beta_last"):
            VPSDE(beta_first=pair[0], beta_last=pair[1])


def test_a_checkpoint_becomes_a_run_that_samples_as_its_own_code_does(tmp_path):
    state = published(**NET)
    held = {f"flow_net_state_dict.{n}": t.float() for n, t in state.items()}
    safetensors.torch.save_file(held, tmp_path / "fmw_best.safetensors")
    settings = {"unet_num_heads": 2, "unet_norm_num_groups": 2, "model_input_size": [16, 16, 16]}
    ranges = {"Age": {"min": 20.0, "max": 80.0}}
    for name, tree in (("config", settings), ("condition_ranges", ranges)):
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
    run = import_run("flowlet", tmp_path, tmp_path / "run", overrides=["importer.axes=RAS"])
    _, model = load_run(run)
    age = Statistics.load(run).standardised({"Age": 35.0})[None]
    assert age.item() == pytest.approx(0.25)
    assert Statistics.load(run).ranges == {"Age": (20.0, 80.0)}
    noise = normal(1, 8, 8, 8, 8).float()
    sampler = DDIM(5)
    times = sampler.times(model.kernel.schedule)
    z = sampler.sample(model.denoise, model.kernel, noise, times, condition=Condition(scalars=age))
    told = {"Age": age[0].double()}
    expected = euler(lambda z, t: forward(state, z, t, told, heads=2, groups=2), noise.double(), 5)
    torch.testing.assert_close(z.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.decode(z, (16, 16, 16)).double(), back(expected), rtol=1e-4, atol=1e-4
    )


# --- what it takes and refuses ------------------------------------------------------------------


def refused(words, state, *more, **options):
    with pytest.raises((DataError, UsageError), match=words) as caught:
        imported(state, *WORDS, *more, **options)
    assert "\n" not in str(caught.value)


def test_every_tensor_is_used_and_none_is_missing():
    state = published(**NET)
    refused("extra.weight would be left", {**state, "extra.weight": torch.zeros(3)})
    for name in list(state)[::17]:
        refused(".", {n: t for n, t in state.items() if n != name})
        refused(".", {**state, name: torch.zeros(5)})


def test_what_is_not_supported_is_said():
    state = published(**NET)
    blind = {n: t for n, t in state.items() if "cross" not in n and "context" not in n}
    refused("ignores its condition altogether", blind)
    refused(r"put condition_ranges.json .* importer.ranges=\{Age", state, ranges={})
    refused("expected a rising range, got 3", state, ranges={"Age": (3.0, 3.0)})
    refused("heads 8 must divide the width 12", state, "network.heads=8")
    files = {"config.json": {"flow_type": "curly"}}
    refused("flow_type 'curly'", state, files=files)
    wide = {**state, "input_blocks.0.0.weight": torch.zeros(4, 9, 3, 3, 3)}
    refused("has 9 channels in and 8 out", wide)
    refused("axes such as LPS", state, axes="XYZ")


def test_a_checkpoint_of_its_trainer_is_read_without_the_optimizer(tmp_path):
    state = {n: t.float() for n, t in published(**NET).items()}
    content = {
        "epoch": 3,
        "flow_net_state_dict": state,
        "optimizer_state_dict": {"state": {}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "best_val_loss": 0.5,
    }
    torch.save(content, tmp_path / "fmw_best.pth")
    words = [*WORDS, "importer.ranges={Age: [20, 80]}"]
    run = import_run(
        "flowlet",
        tmp_path / "fmw_best.pth",
        tmp_path / "run",
        overrides=words,
        ranges={"Age": (25.0, 70.0)},
        weights_only_pickle=True,
    )
    assert load_run(run)[0].recipe["scalars"] == ["Age"]
    # those that are given go before those that the network is scaled by
    assert Statistics.load(run).ranges == {"Age": (25.0, 70.0)}
    for ranges, expected in (
        ({"age": (20.0, 80.0)}, r"range age: the run is conditioned on Age\. Did you mean 'Age'"),
        ({"Age": (80.0, 20.0)}, "range Age: expected a rising range, got 80 to 20"),
    ):
        with pytest.raises(UsageError, match=expected):
            import_run(
                "flowlet",
                tmp_path / "fmw_best.pth",
                tmp_path / "other",
                overrides=words,
                ranges=ranges,
                weights_only_pickle=True,
            )
        assert not (tmp_path / "other").exists()


def test_heads_must_fit():
    with pytest.raises(ValueError, match="expected one number, or one for each of 2 levels"):
        FlowLet(1, 1, widths=(4, 8), heads=(1, 2, 3), groups=2)
