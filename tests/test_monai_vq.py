"""MONAI's VQVAE: its checkpoints become autoencoders that compute what its own code computes."""

import pytest
import torch
from monai_networks import imported, randomised

from volumediff import config
from volumediff.errors import DataError
from volumediff.importers._base import ForeignCheckpoint
from volumediff.importers._published import Published
from volumediff.memory.memory_policy import MemoryPolicy


def vqvae(**options):
    from monai.networks.nets import VQVAE

    common = {"channels": (6, 8), "num_res_channels": (3, 5), "num_res_layers": 2}
    common |= {"downsample_parameters": ((2, 4, 1, 1),) * 2}
    common |= {"upsample_parameters": ((2, 4, 1, 1, 0),) * 2}
    common |= {"num_embeddings": 16, "embedding_dim": 4}
    return randomised(VQVAE(3, 1, 1, **(common | options)))


def volume(*size):
    return torch.rand(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("axes", ["RAS", "LPS"])
@pytest.mark.parametrize("layers", [2, 0])
def test_it_computes_what_monai_computes(axes, layers):
    theirs = vqvae(num_res_layers=layers)
    ours = imported({"name": "monai_vq", "axes": axes}, theirs.state_dict())
    u = volume(1, 1, 8, 12, 4)  # between 0 and 1 there, between -1 and 1 here
    dims = (2, 3) if axes == "LPS" else ()
    with torch.no_grad():
        z = theirs.encode(u.flip(dims)).flip(dims)
        y, _ = theirs.float()(u.flip(dims).float())  # its codebook takes float32 alone
        found = ours.encode(2 * u - 1)
        torch.testing.assert_close(found, z, rtol=0, atol=1e-10)
        expected = 2 * y.flip(dims).double() - 1
        torch.testing.assert_close(ours.decode(found), expected, rtol=0, atol=1e-5)
        assert float((expected - expected.mean()).abs().max()) > 0.01
        whole = ours.decode(found)
        MemoryPolicy(slab=2).apply(ours)
        torch.testing.assert_close(ours.encode(2 * u - 1), found, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.decode(found), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("policy", [{"slab": 2}, {"checkpoint": True}])
def test_gradients_are_those_of_the_whole_volume(policy):
    ours = imported("monai_vq", vqvae().state_dict()).train().requires_grad_(True)
    x = 2 * volume(1, 1, 8, 8, 8) - 1

    def gradients():
        ours.zero_grad()
        codec = ours.codec
        (codec["decoder"](codec["encoder"](x)) - x).square().mean().backward()
        return {n: p.grad.clone() for n, p in ours.named_parameters() if p.grad is not None}

    plain = gradients()
    assert sum(float(g.abs().max()) > 0 for g in plain.values()) == len(plain)
    MemoryPolicy(**policy).apply(ours)
    again = gradients()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-9, atol=1e-12)


def test_what_is_not_known_is_refused():
    def refused(tensors, words, **settings):
        published = Published({"train.json": {"net": {"_target_": "monai.VQVAE", **settings}}})
        source = ForeignCheckpoint(tensors, published=published)
        with pytest.raises(DataError, match=words) as caught:
            config.build("importer", "monai_vq").config(source)
        assert "\n" not in str(caught.value)

    state = vqvae().state_dict()
    refused(state, "has act = LEAKYRELU, and RELU alone is known", act="LEAKYRELU")
    refused(state, "has output_act = sigmoid", output_act="sigmoid")
    other = [[2, 4, 1, 1], [2, 4, 2, 2]]
    refused(state, "has downsample_parameters = ", downsample_parameters=other)
    parameters = ((2, 3, 1, 1),) * 2, ((2, 3, 1, 1, 1),) * 2
    names = ("downsample_parameters", "upsample_parameters")
    threes = vqvae(**dict(zip(names, parameters, strict=True))).state_dict()
    refused(threes, r"changes the grid by kernels of \(3, 3, 3\)")
    refused({**state, "encoder.blocks.7.conv.weight": torch.zeros(1)}, "are not those of a VQVAE")
    # the defaults, said per level, are no others
    source = ForeignCheckpoint(
        state, published=Published({"a.json": {"_target_": "x.VQVAE", "act": "RELU"}})
    )
    assert config.build("importer", "monai_vq").config(source)["autoencoder"]["inner"] == [3, 5]
