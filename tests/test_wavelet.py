"""The wavelet transform against PyWavelets, band by band, and against the adjoint identity."""

from itertools import product

import numpy as np
import pytest
import pywt
import torch

from volumediff.spaces.wavelet import Wavelet

FILTERS = ["haar", "db2", "sym4", "coif1", "db10"]


def packets(x, wavelet, axes):
    """One level of PyWavelets in our channel order: bits of the band along d, h, w."""
    bands = pywt.dwtn(x, wavelet, mode="periodization", axes=["dhw".index(a) + 2 for a in axes])
    return np.concatenate([bands["".join(k)] for k in product("ad", repeat=len(axes))], axis=1)


@pytest.mark.parametrize("wavelet", FILTERS)
@pytest.mark.parametrize("axes", ["dhw", "hw", "d", "dw"])
@pytest.mark.parametrize("levels", [1, 2])
def test_equals_pywavelets(wavelet, axes, levels):
    # 4 and 8 voxels are shorter than the filters of coif1 and db10
    x = torch.randn(2, 3, 4, 12, 8, dtype=torch.float64)
    expected = x.numpy()
    for _ in range(levels):
        expected = packets(expected, wavelet, axes)
    z = Wavelet(wavelet, levels, axes).analysis(x)
    np.testing.assert_allclose(z.numpy(), expected, atol=1e-12)


def test_first_channels_are_the_coarse_volume():
    # Haar LLL is the mean of 2^3 voxels times sqrt(8); two levels: of 4^3 voxels times 8
    x = torch.randn(1, 3, 8, 4, 12, dtype=torch.float64)
    for levels in (1, 2):
        size = 2**levels
        coarse = torch.nn.functional.avg_pool3d(x, size) * size**1.5
        torch.testing.assert_close(Wavelet("haar", levels).analysis(x)[:, :3], coarse)


def test_bands_are_named_by_the_axis_they_differentiate():
    ramp = torch.arange(4.0)
    space = Wavelet()
    for axis, band in ((2, 0b100), (3, 0b010), (4, 0b001)):
        shape = [1, 1, 1, 1, 1]
        shape[axis] = 4
        z = space.analysis(ramp.view(shape).expand(1, 1, 4, 4, 4))
        energy = z.square().sum((0, 2, 3, 4))
        assert energy.gt(1e-6).nonzero().flatten().tolist() == [0, band]


@pytest.mark.parametrize("wavelet", FILTERS)
@pytest.mark.parametrize("levels", [1, 2])
def test_synthesis_is_the_transpose(wavelet, levels):
    # <W x, z> = <x, W^T z>, and autograd's transpose of the analysis is the synthesis
    space = Wavelet(wavelet, levels)
    x = torch.randn(1, 2, 8, 4, 12, dtype=torch.float64, requires_grad=True)
    raw = space.analysis(x)
    z = torch.randn_like(raw)
    torch.testing.assert_close(raw.mul(z).sum(), x.mul(space.synthesis(z)).sum())
    (gradient,) = torch.autograd.grad(raw, x, z)
    torch.testing.assert_close(gradient, space.synthesis(z), rtol=1e-10, atol=1e-10)


def test_half_precision_is_rounded_once():
    x = torch.randn(1, 1, 8, 8, 8).bfloat16()
    space = Wavelet("db2", 2)
    z = space.analysis(x)
    assert z.dtype == torch.bfloat16
    assert torch.equal(z, space.analysis(x.float()).bfloat16())
    assert torch.equal(space.synthesis(z), space.synthesis(z.float()).bfloat16())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wavelet": "bior2.2"}, r"orthogonal .*'bior2.2'"),
        ({"wavelet": "dmey"}, r"orthogonal .*'dmey'"),
        ({"wavelet": "haar2"}, r"orthogonal .*'haar2'"),
        ({"levels": 3}, "levels must be 1 or 2, got 3"),
        ({"axes": "dd"}, "letters d, h, w, got 'dd'"),
        ({"axes": "z"}, "letters d, h, w, got 'z'"),
        ({"axes": ""}, "letters d, h, w, got ''"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Wavelet(**arguments)


def test_synthesis_refuses_a_wrong_number_of_channels():
    with pytest.raises(ValueError, match="multiple of 8 state channels, got 7"):
        Wavelet().synthesis(torch.zeros(1, 7, 2, 2, 2))


def test_quadrature_mirror_is_the_high_pass_of_pywavelets():
    for name in FILTERS:
        high = pywt.Wavelet(name).dec_hi[::-1]
        np.testing.assert_allclose(Wavelet(name).high, high, atol=1e-11)
