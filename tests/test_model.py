"""The model: losses and noise are functions of a sample's key, whatever batch it is in."""

import pytest
import torch
from torch import nn

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model, full_coordinates
from volumediff.networks._base import Network
from volumediff.randomness import key
from volumediff.schedules.linear import LinearSchedule
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.times.uniform import Uniform

SCHEDULE = LinearSchedule(zero_terminal_snr=True)
UNIFORM = Uniform()


class Probe(Network):
    """Adds up its input with fixed weights and the embedding, and keeps what it was given."""

    stride = (1, 1, 1)

    def __init__(self, in_channels, out_channels, **keywords):
        super().__init__(in_channels, out_channels, **keywords)
        self.mix = nn.Parameter(torch.linspace(0.1, 0.5, out_channels * self.input_channels))
        self.seen = []

    def body(self, x, e):
        self.seen.append((x, e))
        mix = self.mix.view(self.out_channels, -1).to(x.dtype)
        return torch.einsum("oi,bidhw->bodhw", mix, x) * (1 + e.mean(1).to(x))[:, *[None] * 4]


def make(*, space=None, kernel=None, dtype=torch.float32, times=UNIFORM, **keywords):
    torch.manual_seed(0)
    space = space or Voxel()
    k = space.channels(1)
    network = Probe(k, k, **keywords)
    kernel = kernel or Gaussian(SCHEDULE)
    return Model(space, kernel, network, dtype=dtype, time_density=times)


def volumes(b=4, size=(4, 6, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((b, 1, *size), generator=generator)


def batch(b=4, **keywords):
    return Batch(volumes(b), tuple(key(0, i) for i in range(b)), **keywords)


@pytest.fixture(params=[Voxel, Wavelet], ids=["voxel", "wavelet"])
def space(request):
    return request.param()


def test_loss_is_independent_of_the_batch(space):
    model, whole = make(space=space), batch()
    losses = model.loss(whole)
    assert losses.shape == (4,)
    assert len({round(x, 6) for x in losses.tolist()}) == 4
    for order in ([0], [3], [2, 1], [3, 0, 2, 1]):
        part = Batch(whole.x[order], tuple(whole.keys[i] for i in order))
        torch.testing.assert_close(model.loss(part), losses[order], rtol=1e-5, atol=1e-7)
    torch.manual_seed(5)
    assert torch.equal(model.loss(whole), losses)
    other = Batch(whole.x, tuple(key(1, i) for i in range(4)))
    assert (model.loss(other) - losses).abs().min() > 1e-6


def test_loss_is_the_kernels_with_keyed_time_and_noise(space):
    # The same numbers, put together by hand from what the network saw.
    model, samples = make(space=space), batch()
    seen = {}

    class Spy(Gaussian):
        def loss(self, output, z_0, z_t, t, noise):
            seen.update(output=output, z_0=z_0, z_t=z_t, t=t, noise=noise)
            return super().loss(output, z_0, z_t, t, noise)

    model.kernel = Spy(SCHEDULE)
    losses = model.loss(samples)
    alpha, sigma = (x.float()[:, None, None, None, None] for x in SCHEDULE(seen["t"]))
    torch.testing.assert_close(seen["z_0"], space.encode(samples.x))
    torch.testing.assert_close(seen["z_t"], alpha * seen["z_0"] + sigma * seen["noise"])
    error = seen["output"] - (alpha * seen["noise"] - sigma * seen["z_0"])
    torch.testing.assert_close(losses, error.square().mean((1, 2, 3, 4)))
    torch.testing.assert_close(model.network.seen[0][0], seen["z_t"], rtol=0, atol=0)
    assert losses.requires_grad
    assert not seen["z_0"].requires_grad


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.2, 0.6)])
def test_training_times_are_uniform(times):
    found = []

    class Spy(Gaussian):
        def corrupt(self, z_0, t, noise):
            found.append(t)
            return super().corrupt(z_0, t, noise)

    model = make(kernel=Spy(SCHEDULE), times=Uniform(*times))
    n = 1000
    model.loss(Batch(torch.zeros(n, 1, 1, 1, 1), tuple(range(n))))
    t = torch.sort(found[0]).values
    low, high = times
    assert low < float(t[0])
    assert float(t[-1]) <= high
    expected = low + (high - low) * (torch.arange(n).double() + 0.5) / n
    # Kolmogorov-Smirnov distance at the 1 % level
    assert (t - expected).abs().max() / (high - low) < 1.63 / n**0.5


def test_noise_is_white_and_keyed(space):
    model, keys = make(space=space), [key(3, i) for i in range(6)]
    noise = model.noise(keys, (1, 12, 10, 8))
    first = noise(0)
    z = space.encode(torch.zeros(6, 1, 12, 10, 8))
    assert first.shape == z.shape
    assert first.std().item() == pytest.approx(1, abs=0.03)
    assert first.mean().item() == pytest.approx(0, abs=0.04)
    assert torch.equal(model.noise(keys[4:], (1, 12, 10, 8))(0), first[4:])
    for other in (noise(1), noise(-1), model.noise([key(9)] * 6, (1, 12, 10, 8))(0)):
        correlation = (other * first).mean().item()
        assert abs(correlation) < 0.05


def test_noise_is_white_where_the_space_pads():
    model = make(space=Wavelet())
    fields = model.noise(tuple(range(400)), (1, 3, 3, 1))(0).flatten(1)
    covariance = fields.T @ fields / 400
    torch.testing.assert_close(covariance, torch.eye(len(covariance)), rtol=0, atol=0.3)


def test_network_computes_in_its_own_dtype():
    place, image = torch.randn(2, 3, 4, 6, 2), torch.randn(2, 1, 4, 6, 2)
    condition = Condition(image=image, coordinates=place, scalars=torch.randn(2, 2))
    keywords = {"coordinates": True, "image_channels": 1, "scalars": 2}
    z, t = volumes(2), torch.tensor([0.2, 0.9], dtype=torch.float64)
    found, embedded = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        model = make(dtype=dtype, **keywords)
        found[dtype] = model.denoise(z, t, condition)
        x, embedded[dtype] = model.network.seen[0]
        assert x.dtype == dtype
        assert {found[dtype].x0.dtype, found[dtype].eps.dtype} == {torch.float32}
    # The embedding holds time and scalars: bfloat16 has 128 values between 0.5 and 1.
    assert torch.equal(embedded[torch.bfloat16], embedded[torch.float32])
    torch.testing.assert_close(found[torch.bfloat16].v, found[torch.float32].v, rtol=0, atol=0.05)
    assert not torch.equal(found[torch.bfloat16].v, found[torch.float32].v)


def test_loss_of_a_bfloat16_network_is_float32():
    losses = make(dtype=torch.bfloat16).loss(batch())
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, make().loss(batch()), rtol=0.05, atol=0)


def test_coordinates_are_those_of_the_whole_volume_unless_given():
    model, z = make(coordinates=True), volumes(2)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    model.denoise(z, t)
    built = model.network.seen[0][0][:, 1:]
    assert built.shape == (2, 3, 4, 6, 2)
    for axis, n in enumerate((4, 6, 2)):
        line = built[0, axis].movedim(axis, 0).flatten(1)
        torch.testing.assert_close(line, torch.linspace(-1, 1, n)[:, None].expand_as(line))
    crop = full_coordinates(z)[..., 1:3, :, :].expand(2, -1, -1, -1, -1)
    model.denoise(z[:, :, 1:3], t, Condition(coordinates=crop))
    assert torch.equal(model.network.seen[1][0][:, 1:], crop)
    assert torch.equal(model.network.seen[1][0][:, 1:], built[:, :, 1:3])


def test_one_slice_is_in_the_middle():
    assert full_coordinates(torch.zeros(1, 1, 1, 2, 3))[0, 0].abs().max() == 0


def test_image_goes_through_the_space(space):
    image = volumes(4, seed=2)
    model = make(space=space, image_channels=space.channels(1))
    model.loss(batch(images=(image,)))
    k = space.channels(1)
    torch.testing.assert_close(model.network.seen[0][0][:, k:], space.encode(image))
    moved = batch(images=(image,), condition=Condition(label=torch.arange(4))).to("cpu")
    assert torch.equal(moved.images[0], image)
    assert moved.condition.label.tolist() == [0, 1, 2, 3]


def test_decode_undoes_encode(space):
    model, x = make(space=space), volumes(2, size=(5, 4, 3))
    torch.testing.assert_close(model.decode(model.encode(x), (5, 4, 3)), x, rtol=0, atol=1e-5)


def test_denoise_reads_the_output_as_the_kernel_says():
    z, t = volumes(1), torch.tensor([0.4], dtype=torch.float64)
    for name in ("x0", "v"):
        model = make(kernel=Gaussian(SCHEDULE, prediction=name))
        found = model.denoise(z, t)
        output = model.network(z, t.float())
        torch.testing.assert_close(getattr(found, name), output)
