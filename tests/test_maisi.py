"""MAISI's diffusion models: classes by name, attributes in their units, flows and chains."""

import pytest
import safetensors.torch
import torch
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai_networks import maisi_autoencoder, maisi_unet, unet

from volumediff.condition import Condition
from volumediff.config import build, overridden
from volumediff.errors import DataError, UsageError
from volumediff.guidance.classifier_free import ClassifierFree
from volumediff.importers._base import ForeignCheckpoint, checked
from volumediff.inference.options import SampleOptions
from volumediff.inference.sample import sampling
from volumediff.networks._embedding import fourier
from volumediff.runs.trained import load_trained
from volumediff.samplers.ddim import DDIM
from volumediff.samples.preparation_record import NAME, RunPreparation
from volumediff.schedules.rectified import Rectified
from volumediff.settings.run_config import parse
from volumediff.storage.records import read
from volumediff.tasks import build_task
from volumediff.time_grids import ShiftedTimeGrid
from volumediff.training.imported import import_run

SMALL = ("network.groups=4", "importer.variant=rflow-mr-brain")


def flow_unet():
    """The layers of config_network_rflow.json, with few channels."""
    return maisi_unet(
        num_class_embeds=128,
        include_fc=True,
        include_spacing_input=True,
        num_channels=(32, 64),
        num_head_channels=(0, 32),
    )


def chain_unet():
    """Those of config_network_ddpm.json."""
    return maisi_unet(
        include_fc=False,
        resblock_updown=False,
        include_spacing_input=True,
        include_top_region_index_input=True,
        include_bottom_region_index_input=True,
        num_channels=(32, 64),
        num_head_channels=(0, 32),
    )


def configured(state, **arguments):
    importer = build("importer", {"name": "maisi", **arguments})
    source = ForeignCheckpoint(state)
    return importer, source, importer.config(source)


def imported(state, **arguments):
    """The model of a state dict, without its autoencoder."""
    importer, source, tree = configured(state, **arguments)
    units = [a / 0.01 for _, a in importer.scaling(source)]
    task = build_task(parse(overridden(tree, ["network.groups=4", "space=voxel", *CHANNELS])))
    shapes = {name: tuple(t.shape) for name, t in task.state().items()}
    shapes |= dict.fromkeys(("space.shift", "space.scale"), (4,))
    task.module.double()
    task.load(checked(importer, source, shapes))
    task.module.dtype = torch.float64
    return task.module.eval(), units


CHANNELS = ["data.channels=[a,b,c,d]"]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def exact_time(monkeypatch):
    """MONAI computes its time features in float32, whatever the network computes in."""
    name = "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi.get_timestep_embedding"
    monkeypatch.setattr(name, lambda k, width: fourier(k.double() / 1000, width))


# --- conditions ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_time")
@pytest.mark.parametrize(
    ("variant", "modality", "number"),
    [
        ("rflow-ct", None, 1),
        ("rflow-mr", None, 9),
        ("rflow-mr-brain", "mri_t1_skull_stripped", 29),
        ("rflow-mr-brain", "mri_swi", 20),
    ],
)
def test_a_modality_is_its_class_and_none_is_the_unknown(variant, modality, number):
    theirs = flow_unet()
    state = theirs.state_dict()
    model, units = imported(state, variant=variant, modality=modality)
    assert units == [1.0, 1.0, 1.0]
    assert model.recipe.values[0] == (modality or {1: "ct", 9: "mri_t1"}[number])
    assert len(model.recipe.values) == 127
    z, t, spacing = normal(2, 4, 4, 6, 2), torch.tensor([0.3, 1.0]).double(), normal(2, 3, seed=1)

    def expected(label):
        told = {"class_labels": torch.tensor([label] * 2), "spacing_tensor": spacing}
        return -theirs(z.clone(), 1000 * t, **told)

    def found(label):
        given = None if label is None else torch.tensor([label] * 2)
        return model.network(z, t, Condition(label=given, scalars=spacing))

    pairs = [(0, number), (127, 0), (None, 0)]
    pairs += [
        (model.recipe.values.index(name), n) for name, n in (("ct_contrast", 3), ("class_4", 4))
    ]
    pairs += [(model.recipe.values.index("mri_mra_skull_stripped"), 33)]
    for ours, label in pairs:
        torch.testing.assert_close(found(ours), expected(label), rtol=1e-10, atol=1e-10)
    assert (found(0) - found(127)).abs().max() > 1e-3
    # guided away from the unknown, as its sampler does it
    guided = ClassifierFree(2.0, classes=127)(model.denoise)
    given = Condition(label=torch.tensor([0, 0]), scalars=spacing)
    u = guided(z, t, given).velocity(model.kernel.schedule.rates(t))
    away, towards = expected(0), expected(number)
    torch.testing.assert_close(u, away + 2 * (towards - away), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("exact_time")
def test_regions_and_voxel_sizes_are_attributes():
    theirs = chain_unet()
    model, units = imported(theirs.state_dict())
    assert units == [1.0] * 11
    names = list(model.recipe.scalars)
    assert names[:5] == ["top_head", "top_chest", "top_abdomen", "top_pelvis", "bottom_head"]
    assert names[8:] == ["spacing_r_mm", "spacing_a_mm", "spacing_s_mm"]
    z, told = normal(1, 4, 4, 4, 4), normal(1, 11, seed=1)
    top, bottom, spacing = told.split((4, 4, 3), 1)
    expected = theirs(
        z.clone(),
        torch.tensor([249]),
        top_region_index_tensor=top,
        bottom_region_index_tensor=bottom,
        spacing_tensor=spacing,
    )
    found = model.network(z, torch.tensor([0.25]).double(), Condition(scalars=told))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# --- chains -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_time")
def test_five_steps_of_the_flow_are_those_of_its_scheduler():
    from monai.networks.schedulers import RFlowScheduler

    theirs = flow_unet()
    model, _ = imported(theirs.state_dict(), variant="rflow-mr")
    spacing, noise = normal(1, 3), normal(1, 4, 4, 4, 8, seed=1)
    scheduler = RFlowScheduler(1000, use_discrete_timesteps=False)
    scheduler.set_timesteps(5)
    times = scheduler.timesteps  # 1000, 800, ... which float16 holds exactly
    z = noise.clone()
    for t, s in zip(times, torch.cat((times[1:], times.new_zeros(1))), strict=True):
        label = torch.tensor([9])
        v = theirs(z.clone(), t[None].double(), class_labels=label, spacing_tensor=spacing)
        z, _ = scheduler.step(v, t.double(), z, s)
    condition = Condition(label=torch.tensor([0]), scalars=spacing)
    found = DDIM(5).sample(
        model.denoise,
        model.kernel,
        noise,
        DDIM(5).times(model.kernel.schedule),
        condition=condition,
    )
    torch.testing.assert_close(found, z, rtol=1e-9, atol=1e-9)
    assert (z - noise).std() > 0.1


@pytest.mark.parametrize("latent", [(64, 64, 32), (32, 32, 32), (128, 128, 64)])
def test_its_transform_of_times_is_a_shifted_grid(latent):
    from monai.networks.schedulers import RFlowScheduler

    voxels = latent[0] * latent[1] * latent[2]
    scheduler = RFlowScheduler(1000, use_discrete_timesteps=False, use_timestep_transform=True)
    scheduler.set_timesteps(30, input_img_size_numel=voxels)
    shift = (voxels / 32**3) ** (2 / 3)
    times = DDIM(30, grid=ShiftedTimeGrid(shift)).times(Rectified())
    # its times are rounded to float16: 11 bits
    close = {"rtol": 2**-11, "atol": 0}
    torch.testing.assert_close(times[:-1], scheduler.timesteps.double() / 1000, **close)


def test_steps_of_the_chain_are_those_of_its_scheduler():
    from monai.networks.schedulers import DDPMScheduler

    _, _, tree = configured(chain_unet().state_dict())
    kernel = build("kernel", tree["kernel"])
    scheduler = DDPMScheduler(
        1000,
        schedule="scaled_linear_beta",
        beta_start=0.0015,
        beta_end=0.0195,
        clip_sample=False,
    )
    scheduler.betas = scheduler.betas.double()
    z = ours = normal(1, 4, 4, 4, 4)
    for k in (999, 998, 640, 1, 0):
        eps, noise = normal(*z.shape, seed=k), normal(*z.shape, seed=k + 5000)
        generator = torch.Generator().manual_seed(k + 5000)
        z, _ = scheduler.step(eps, k, z, generator=generator)
        t, s = (torch.tensor([(k + i) / 1000]).double() for i in (1, 0))
        noise = noise if k else torch.zeros_like(noise)
        ours = kernel.step(kernel.predict(eps, ours, t), ours, t, s, noise)
        torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-4)  # its table is of float32


# --- runs ---------------------------------------------------------------------------------------


def test_checkpoints_become_a_run_that_samples_a_modality_by_name(tmp_path):
    parts = {"coder": maisi_autoencoder(latent_channels=4), "unet": flow_unet()}
    for name, module in parts.items():
        state = {n: t.float() for n, t in module.state_dict().items()}
        if name == "unet":
            state = {f"unet_state_dict.{n}": t for n, t in state.items()}
            state |= {"scale_factor": torch.tensor(1.5), "epoch": torch.tensor(7)}
        safetensors.torch.save_file(state, tmp_path / f"{name}.safetensors")
    coder = import_run(
        "monai_autoencoder",
        tmp_path / "coder.safetensors",
        tmp_path / "coder",
        overrides=["autoencoder.groups=4"],
    )
    words = [*SMALL, f"space.autoencoder={coder}", "data.preprocessing.shape=[8,8,8]"]
    words += ["importer.modality=mri_t2_skull_stripped"]
    run = import_run("maisi", tmp_path / "unet.safetensors", tmp_path / "run", overrides=words)
    assert read(run / NAME, RunPreparation).stripped
    trained = load_trained(run)
    # hundredths of a millimetre, known by the preprocessing
    told = trained.condition({}).scalars
    torch.testing.assert_close(told, torch.tensor([[94.0, 94.0, 136.0]]))
    assert trained.diffusion.space.scale.tolist() == pytest.approx([1 / 1.5] * 4)
    guided = ("sampler={name: ddim, steps: 2}", "guidance={name: classifier_free, weight: 2}")

    def drawn(words=guided[:1], **options):
        return sampling(trained, SampleOptions(words, **options)).draw("a").array

    own = drawn()
    assert (drawn(attributes={"modality": "mri_t2_skull_stripped"}) == own).all()
    other = drawn(attributes={"modality": "mri_flair"})
    assert abs(other - own).max() > 1e-4
    assert (drawn(label=trained.recipe.values.index("mri_flair")) == other).all()
    assert abs(drawn(guided) - own).max() > 1e-4
    with pytest.raises(UsageError, match="attribute 'modality' is 'pet': expected one of mri_t2"):
        drawn(attributes={"modality": "pet"})
    with pytest.raises(UsageError, match="sampling takes sampler, guidance"):
        drawn(("smapler=ddim",))


# --- refusals -----------------------------------------------------------------------------------


def refused(words, state, **arguments):
    with pytest.raises((DataError, UsageError), match=words) as caught:
        configured(state, **arguments)
    assert "\n" not in str(caught.value)


def test_what_is_none_of_them_is_said():
    flow, chain = flow_unet().state_dict(), chain_unet().state_dict()
    fits = "rflow-ct, rflow-mr, rflow-mr-brain"
    refused(f"give importer.variant=NAME, one of {fits}", flow)
    refused("variant=ddpm-ct: expected rflow-ct or rflow-mr", flow, variant="ddpm-ct")
    refused("variant=rflow-ct: expected ddpm-ct", chain, variant="rflow-ct")
    refused("modality=mri_t1: expected one of ct,", flow, variant="rflow-ct", modality="mri_t1")
    refused("modality=ct: expected one of mri,", flow, variant="rflow-mr", modality="ct")
    refused("modality=9: expected one of", flow, variant="rflow-mr", modality="9")
    refused("expected one of ct for ddpm-ct", chain, modality="ct_contrast")
    refused(
        "import that of images with the kind monai_autoencoder", maisi_autoencoder().state_dict()
    )
    few = maisi_unet(num_class_embeds=4, num_channels=(32, 64), num_head_channels=(0, 32))
    refused("has 4 classes, expected the 128", few.state_dict(), variant="rflow-mr")
    plain = maisi_unet(num_channels=(32, 64), num_head_channels=(0, 32)).state_dict()
    refused("no diffusion model of NV-Generate", plain)
    control = ControlNetMaisi(
        3,
        4,
        num_channels=(8, 16),
        attention_levels=(False, True),
        num_res_blocks=1,
        norm_num_groups=4,
        num_head_channels=4,
        conditioning_embedding_in_channels=8,
        conditioning_embedding_num_channels=(8, 8),
    )
    held = {f"controlnet_state_dict.{n}": t for n, t in control.state_dict().items()}
    refused("MAISI's ControlNet, which is not supported; give the diffusion model", held)
    masks = unet(with_conditioning=True, cross_attention_dim=10).state_dict()
    refused("model of masks, which is not supported", masks)
