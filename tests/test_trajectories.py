"""Operators of trajectories: mixing over time, the teacher's states, closed forms, training."""

import pytest
import torch
import torch.nn.functional as F
from oracles import flow, gaussian
from torch import nn

from volumediff.condition import Condition
from volumediff.kernels.gaussian import Gaussian
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import Model
from volumediff.networks._spectral_mixing import SpectralMixing, mixed
from volumediff.networks.guided import Guided
from volumediff.networks.monai_unet import MonaiUNet
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.randomness import normal
from volumediff.samplers.ddim import DDIM
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule
from volumediff.spaces.voxel import Voxel
from volumediff.trajectories import (
    trajectory_loss,
    trajectory_steps,
    trajectory_times,
    walked,
)

KERNEL = Gaussian(Cosine(zero_terminal_snr=True))
MEAN, STD = 0.3, 0.5
NETWORKS = (UNet, Guided, MonaiUNet, Pseudo3D)


def identity(states, modes, channels=3):
    layer = SpectralMixing(channels, states=states, modes=modes).double()
    with torch.no_grad():
        layer.real.copy_(torch.eye(channels).expand(modes, -1, -1))
    return layer


# --- mixing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [1, 2, 4, 5, 6])
def test_all_frequencies_with_r_equal_to_one_are_the_identity(states):
    weight = identity(states, states // 2 + 1).weight()
    torch.testing.assert_close(weight, torch.eye(3 * states, dtype=torch.float64))


@pytest.mark.parametrize(("states", "modes"), [(1, 1), (2, 1), (4, 2), (4, 3), (5, 2), (5, 3)])
def test_mixing_is_a_product_in_the_fourier_domain(states, modes):
    layer = SpectralMixing(3, states=states, modes=modes).double()
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = normal(tuple(parameter.shape), "R", i, dtype=torch.float64)
    x = normal((2 * states, 3, 2, 3, 1), "x", dtype=torch.float64)
    spectrum = torch.fft.rfft(x.unflatten(0, (2, states)), dim=1)[:, :modes]
    r = torch.complex(layer.real, layer.imaginary).detach()
    product = torch.einsum("foc,bfcdhw->bfodhw", r, spectrum)
    padding = (0, 0) * 4 + (0, states // 2 + 1 - modes)
    expected = torch.fft.irfft(F.pad(product, padding), n=states, dim=1).flatten(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(mixed(x, layer.weight(), states=states), expected)
        torch.testing.assert_close(layer(x), x + F.leaky_relu(expected, 0.01))
    assert all(p.grad is None for p in layer.parameters())


def test_mixing_of_low_frequencies_alone_smooths_over_time():
    """R = 1 at frequency 0 is the mean over the states."""
    x = normal((8, 3, 2, 2, 2), "x", dtype=torch.float64)
    found = mixed(x, identity(4, 1).weight(), states=4)
    expected = x.unflatten(0, (2, 4)).mean(1, keepdim=True).expand(-1, 4, *x.shape[1:])
    torch.testing.assert_close(found.detach(), expected.flatten(0, 1))


def test_more_frequencies_than_there_are_states_for_are_refused():
    with pytest.raises(ValueError, match="expected 1 to 3, the frequencies of 4 states, got 4"):
        SpectralMixing(3, states=4, modes=4)


# --- networks ------------------------------------------------------------------------------------


def network(cls, *, randomised=True, **named):
    torch.manual_seed(0)
    net = cls(2, 2, widths=(4, 8), blocks=1, groups=2, **named).double()
    net.take_trajectory((0.9, 0.5, 0.25, 0.0), modes=2)
    net.double()
    for name, parameter in net.named_parameters():
        if randomised or "mixing" not in name:
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.mark.parametrize("cls", NETWORKS)
def test_a_network_gives_all_states_of_each_sample(cls):
    z, t = normal((2, 2, 4, 5, 3), "z", dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    net, plain = network(cls, randomised=False), cls(2, 2, widths=(4, 8), blocks=1, groups=2)
    plain.double().load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        found = net(z, t).unflatten(0, (2, 4))
        # unmixed, it is the network without trajectories at every time
        for m, time in enumerate(net.times):
            torch.testing.assert_close(found[:, m], plain(z, time * t))
        net = network(cls)
        found = net(z, t).unflatten(0, (2, 4))
        torch.testing.assert_close(net(z[1:], t[1:]), found[1])
        assert not torch.isclose(found[:, 0], plain(z, 0.9 * t)).any()
    y = net(z, t)
    y[0].sum().backward()
    assert all(
        p.grad is not None and p.grad.any() for n, p in net.named_parameters() if "real" in n
    )


@pytest.mark.parametrize("slab", [1, 3])
@pytest.mark.parametrize("cls", [UNet, Guided])
def test_slabs_of_a_trajectory_are_the_whole(cls, slab):
    net = network(cls, image_channels=1)
    z, t = normal((1, 2, 8, 4, 4), "z", dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    condition = Condition(image=normal((1, 1, 8, 4, 4), "i", dtype=torch.float64))

    def gradients():
        net.zero_grad()
        y = net(z, t, condition)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in net.parameters())]

    whole = gradients()
    MemoryPolicy(slab=slab).apply(net)
    for a, b in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- the teacher's trajectory --------------------------------------------------------------------


def test_the_times_are_quadratic():
    assert trajectory_steps(4, 512) == tuple(2 * i**2 for i in (4, 8, 12, 16))
    assert [512 - k for k in trajectory_steps(4, 512)] == [480, 384, 224, 0]
    expected = torch.tensor([480, 384, 224, 0], dtype=torch.float64) / 512
    torch.testing.assert_close(trajectory_times(4), expected)
    with pytest.raises(ValueError, match="expected a multiple of 16, the square of the 4 states"):
        trajectory_steps(4, 50)


class Teacher(Model):
    """The exact denoiser of Gaussian data."""

    def __init__(self, kernel):
        super().__init__(Voxel(), kernel, UNet(1, 1, widths=(4,), blocks=1, groups=2))
        self.exact = gaussian(kernel.schedule, MEAN, STD)

    def denoise(self, z_t, t, condition=None):
        return self.exact(z_t, t, condition)


def noise(count=2):
    return normal((count, 1, 2, 3, 2), "noise", dtype=torch.float64)


def test_the_states_are_those_of_the_whole_walk_and_converge_to_the_flow():
    teacher, z_1 = Teacher(KERNEL), noise()
    found = walked(teacher, z_1, Condition(), states=4, steps=64)
    walk = DDIM(64)
    end = walk.sample(teacher.denoise, KERNEL, z_1, walk.times(KERNEL.schedule))
    assert torch.equal(found[:, -1], end)
    fine = walked(teacher, z_1, Condition(), states=4, steps=512)
    for j, t in enumerate(trajectory_times(4).tolist()):
        exact = flow(KERNEL.schedule, MEAN, STD, z_1, 1.0, t)
        torch.testing.assert_close(fine[:, j], exact, rtol=0, atol=8e-3)
        assert (found[:, j] - exact).abs().max() > (fine[:, j] - exact).abs().max()


def test_the_loss_by_hand():
    schedule = Cosine()
    found = noise(8).reshape(2, 4, 1, 2, 3, 2)
    target = 1.5 * found + 0.1
    alpha, sigma = schedule(trajectory_times(4))
    ratios = (alpha / sigma).tolist()
    assert ratios[0] < 1 < ratios[2] < 1e4 < ratios[3]
    weights = [1.0, max(1.0, ratios[1]), ratios[2], 1e4]
    errors = (target - found).abs().flatten(2).mean(2)
    expected = sum(w * errors[:, j] for j, w in enumerate(weights))
    torch.testing.assert_close(trajectory_loss(found, target, schedule), expected)


class Affine(nn.Module):
    """Outputs of a network of trajectories that are affine in the noise, by time."""

    coordinates = False

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.offset = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, z_1, t, condition=None):
        shape = (-1, *(1,) * z_1.ndim)
        slope, offset = self.slope.view(shape), self.offset.view(shape)
        return (slope * z_1[None] + offset).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize("prediction", ["v", "x0", "u"])
def test_regression_on_gaussian_trajectories_ends_in_the_flow(prediction):
    """On Gaussian data every state is affine in the noise, so that least squares are exact."""
    schedule = LinearSchedule() if prediction == "u" else KERNEL.schedule
    kernel = Gaussian(schedule, prediction=prediction)
    teacher, times = Teacher(kernel), trajectory_times(4)
    student = Model(
        Voxel(), kernel, UNet(1, 1, widths=(4,), blocks=1, groups=2), dtype=torch.float64
    )
    student.network = Affine()
    z_1 = noise(4)
    target = walked(teacher, z_1, Condition(), states=4, steps=16)
    optimizer = torch.optim.LBFGS(
        student.network.parameters(),
        lr=1,
        max_iter=200,
        tolerance_grad=1e-14,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = (student.trajectory(z_1, times) - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    unseen = normal((3, 1, 2, 3, 2), "unseen", dtype=torch.float64)
    expected = walked(teacher, unseen, Condition(), states=4, steps=16)
    with torch.no_grad():
        found = student.trajectory(unseen, times)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert trajectory_loss(found, expected, schedule).max() < 1e-2
        said = student.denoise(unseen, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(said.x0, found[:, -1])
