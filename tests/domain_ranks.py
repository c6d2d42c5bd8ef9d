"""Program of tests/test_domain.py, run by three processes under torchrun: passes over volumes that
the first two, or all three, share, against one process.

Writes what each process found, {number of processes: {what: {quantity: largest difference}}}.
"""

import copy
import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from volumediff.autoencoders.kl import KL
from volumediff.batch import Batch
from volumediff.kernels.gaussian import Gaussian
from volumediff.memory.domain import ALONE, Domain, sharing
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import Model
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.planning.tracer import Tracer
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet

KEYS = (3, 5)


def filled(module):
    """No weight is zero, so that nothing can be left out unnoticed."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def model(space, network):
    return filled(Model(space, Gaussian(Cosine()), network, dtype=torch.float64))


def codec(**more):
    return KL(1, widths=(4, 8), strides=((2, 2, 2),), blocks=1, **more)


def latent():
    network = UNet(4, 4, widths=(8, 16), blocks=1, attention_levels=(1,))
    return model(Latent(codec()), network)


# Depths that neither processes nor strides divide; the last one leaves a process without planes.
MODELS = {
    "patch": (
        lambda: model(Voxel(), UNet(1, 1, widths=(8, 16), norm="voxel", coordinates=True)),
        (9, 6, 4),
    ),
    "wavelet": (lambda: model(Wavelet(), UNet(8, 8, widths=(8, 16), blocks=1)), (18, 8, 8)),
    "latent": (latent, (14, 8, 8)),
    "pseudo3d": (
        lambda: model(
            Slices(Voxel()), Pseudo3D(1, 1, widths=(8, 16), blocks=1, attention_levels=(1,))
        ),
        (6, 8, 7),
    ),
    "few planes": (lambda: model(Voxel(), UNet(1, 1, widths=(8, 16), blocks=1)), (2, 6, 4)),
}
POLICIES = {
    "patch": {},
    "wavelet": {"checkpoint": True},
    "latent": {"slab": 2},
    "pseudo3d": {"slab": 2, "offload": True, "checkpoint": 1},
    "few planes": {"slab": 1, "offload": True},
}


def difference(found, expected):
    """Largest difference, in units of each tensor's size."""
    most = max(float(b.abs().max()) for b in expected)
    sizes = (max(float(b.abs().max()), 1e-2 * most) for b in expected)
    pairs = zip(found, expected, sizes, strict=True)
    return max(float((a - b).abs().max()) / size for a, b, size in pairs)


def results(module, losses, uses):
    """Losses, gradients, weights after a step of AdamW, and what the module is for."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    # A bias before a norm has a gradient of rounding alone; a small eps would make a step of it.
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3)
    found = [loss(module) for loss in losses]
    sum(loss.sum() for loss in found).backward()
    found = {
        "loss": [loss.detach() for loss in found],
        "gradients": [p.grad.clone() for p in parameters],
    }
    optimizer.step()
    found["weights"] = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        found["outputs"] = [use(module) for use in uses]
    return found


def compared(module, policy, losses, uses):
    """The differences between the processes of a domain and one."""

    def run(domain):
        mine = copy.deepcopy(module)
        with sharing(domain):
            MemoryPolicy(**policy).apply(mine)
        return results(mine, losses, uses)

    expected = run(ALONE)
    return lambda domain: {
        name: difference(tensors, expected[name]) for name, tensors in run(domain).items()
    }


def of_model(name):
    make, shape = MODELS[name]
    x = draw(2, 1, *shape)

    def denoised(m):
        z = m.encode(x)
        z_t = m.kernel.corrupt(z, torch.full((2,), 0.4).double(), m.noise(KEYS, (1, *shape))(0))
        return m.decode(m.denoise(z_t.double(), torch.full((2,), 0.4).double()).x0, shape)

    return compared(make(), POLICIES[name], [lambda m: m.loss(Batch(x, KEYS))], [denoised])


def of_autoencoder():
    x = draw(2, 1, 11, 8, 8)
    generators = [torch.Generator() for _ in KEYS]

    def loss(player):
        def of(autoencoder):
            for generator, key in zip(generators, KEYS, strict=True):
                generator.manual_seed(key)
            return autoencoder.loss(player, x, generator=generators)["loss"]

        return of

    losses = [loss("autoencoder"), loss("discriminator")]
    uses = [lambda a: a.encode(x), lambda a: a.decode(a.encode(x), (11, 8, 8))]
    return compared(filled(codec(adversarial=0.1)), {}, losses, uses)


def gradient_of_source(domain):
    """Of what the network reads, as a gradient guides a sampler."""
    network = filled(UNet(1, 1, widths=(8, 16), blocks=1))
    found = []
    for who in (ALONE, domain):
        with sharing(who):
            MemoryPolicy().apply(network)
        x = draw(1, 1, 9, 6, 4).requires_grad_()
        y = network(x, torch.full((1,), 0.5).double())
        found.append(torch.autograd.grad((y * draw(*y.shape, seed=1)).sum(), x))
    return {"gradients": difference(found[1], found[0])}


def peaks(domain):
    """Bytes of activations of one process, of one that shares, and of one that is to share, as a
    plan has it; without and with gradients."""
    network = filled(UNet(1, 1, widths=(16, 16), blocks=2)).float()
    found = {}
    planned = Domain.assumed(domain.size)
    for name, who in (("one", ALONE), ("shared", domain), ("planned", planned)):
        with sharing(who):
            MemoryPolicy().apply(network)
        for training in (False, True):
            x = draw(1, 1, 48, 24, 24).float()
            with torch.set_grad_enabled(training), Tracer() as tracer:
                tracer.adopt("other", [x])
                tracer.follow(network.parameters())
                with tracer.stage("pass"):
                    y = network(x, torch.full((1,), 0.5))
                    if training:
                        y.square().mean().backward()
            network.zero_grad()
            kind = "training" if training else "inference"
            found[f"{kind} {name}"] = tracer.stages["pass"].parts["activations"]
    return found


def broken(domain):
    """What the comparison says of a halo that is one plane off, of copies whose gradients are
    lost, and of statistics and gradients that every process keeps for itself."""
    fill = Domain.fill

    def one_plane_off(self, store, held, depth):
        ask = store.ask

        def beside(wanted):
            lo, hi = self.own(depth)
            step = 0 if wanted == (lo, hi) else -1 if wanted[1] >= hi else 1
            return ask((wanted[0] + step, wanted[1] + step))

        store.ask = beside
        fill(self, store, held, depth)
        del store.ask

    compare, found = of_model("wavelet"), {}
    for name, fault in {
        "fill": one_plane_off,
        "fold": lambda *_: None,
        "merge": lambda *_: None,
        "total": lambda *_: None,
    }.items():
        right = getattr(Domain, name)
        setattr(Domain, name, fault)
        found[name] = compare(domain)
        setattr(Domain, name, right)
    return found


def main(output):
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    groups = {size: dist.new_group(range(size)) for size in (2, 3)}
    comparisons = {name: of_model(name) for name in MODELS} | {"autoencoder": of_autoencoder()}
    found = {}
    for size, group in groups.items():
        if rank >= size:
            continue
        domain = Domain(rank, size, group)
        found[size] = {name: compare(domain) for name, compare in comparisons.items()}
        found[size]["source"] = gradient_of_source(domain)
        if size == 2:
            found["peaks"], found["broken"] = peaks(domain), broken(domain)
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, found)
    if rank == 0:
        Path(output).write_text(json.dumps(parts))
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
