"""What the loader brings: noise from the same keys, batches that arrive while others compute."""

import numpy as np
import pretend_cuda
import pytest
import torch

from volumediff.batch import Batch
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.noise import CoarseNoise, GaussianNoise, Pyramid, Simplex
from volumediff.recipes.healthy import Healthy
from volumediff.samples.dataset import Crop, Keyed, stream
from volumediff.samples.loss_noise import LossNoise
from volumediff.samples.statistics import Statistics
from volumediff.samples.volumes import TrainingVolume
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.storage.cache import CacheEntry

BATCHES = [[(0, 0), (0, 1)], [(1, 0), (0, 2)]]


@pytest.fixture
def volumes(tmp_path):
    found = []
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        x = torch.randn(1, 7, 5, 6, generator=torch.Generator().manual_seed(i)).numpy()
        np.save(folder / "x.npy", x)
        np.save(folder / "foreground.npy", x > -9)
        found.append(TrainingVolume(str(i), {}, CacheEntry(folder, {"spacing_mm": [1, 1, 1]})))
    return found


def model(space, field):
    torch.manual_seed(0)
    channels = space.channels(1)
    network = UNet(channels, channels, widths=(4,), blocks=1)
    torch.nn.init.normal_(network.hourglass.head.weight)
    return Model(space, Gaussian(Cosine()), network, noise_field=field)


@pytest.mark.parametrize("crop", [None, (4, 4, 4)])
@pytest.mark.parametrize("field", [GaussianNoise(), CoarseNoise(cell=2), Pyramid(levels=2)])
@pytest.mark.parametrize("space", [Voxel(), Wavelet()], ids=["voxel", "wavelet"])
def test_the_noise_of_workers_is_that_of_the_loss(volumes, space, field, crop):
    trained = model(space, field)
    cut = None if crop is None else Crop(crop, space.stride)
    plain = Keyed(volumes, Healthy(), 3, Statistics({}), crop=cut)
    brought = Keyed(volumes, Healthy(), 3, Statistics({}), crop=cut, noise=LossNoise.of(trained))
    without = list(stream(plain, iter([b[:1] for b in BATCHES]), workers=0))
    bringing = list(stream(brought, iter([b[:1] for b in BATCHES]), workers=0))
    for a, b in zip(without, bringing, strict=True):
        assert a.noise is None
        assert b.noise is not None
        assert torch.equal(trained.loss(a), trained.loss(b))
    other = torch.randn_like(b.noise)
    changed = Batch(b.x, b.keys, b.condition, noise=other)
    assert not torch.equal(trained.loss(changed), trained.loss(b)), (
        "the loss takes what is brought"
    )


def test_fields_that_are_made_on_a_device_are_left_to_it():
    assert LossNoise.of(model(Voxel(), Simplex())) is None


def test_worker_processes_bring_the_same_noise(volumes):
    same = (7, 5, 6)
    dataset = Keyed(
        volumes, Healthy(), 3, Statistics({}), noise=LossNoise(GaussianNoise(), (1, 1, 1))
    )
    alone, shared = (list(stream(dataset, iter(BATCHES), workers=n)) for n in (0, 2))
    for a, b in zip(alone, shared, strict=True):
        assert a.noise.shape[2:] == same
        assert torch.equal(a.noise, b.noise)


def test_batches_arrive_on_a_gpu_without_a_wait_and_without_a_race(volumes):
    dataset = Keyed(
        volumes, Healthy(), 3, Statistics({}), noise=LossNoise(GaussianNoise(), (1, 1, 1))
    )
    wanted = [b.x + b.noise for b in stream(dataset, iter(BATCHES), workers=0)]
    with pretend_cuda.device(streams=True) as gpu:
        found = []
        for batch in stream(dataset, iter(BATCHES), workers=0, device="cuda"):
            assert {batch.x.device.type, batch.noise.device.type} == {"cuda"}
            found.append(batch.x + batch.noise)
        assert gpu.waits.total() == 0
        assert not gpu.order.races
        found = [x.cpu() for x in found]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)
