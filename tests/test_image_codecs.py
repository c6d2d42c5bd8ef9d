"""Latent spaces in which masks and images have codecs of their own."""

import pytest
import torch
from tiny_runs import figures, load_run, rebind, tiny, write_data

from volumediff.autoencoders.kl import KL
from volumediff.errors import DataError, UsageError
from volumediff.image_codecs.copied import Copied
from volumediff.image_codecs.frozen import Frozen
from volumediff.image_codecs.strided import Strided, halvings
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices
from volumediff.storage import checkpoint
from volumediff.training.loop import train

SMALL = {"widths": (4, 8), "strides": ((2, 2, 2),), "blocks": 1, "norm": "voxel"}
PLANAR = {**SMALL, "strides": ((1, 2, 2),), "planar": True}


def codec(channels=1, latent_channels=3, **options):
    torch.manual_seed(channels)
    return KL(channels, latent_channels=latent_channels, **{**SMALL, **options})


def volumes(*shape, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, channels, *shape), generator=generator)


# --- the space --------------------------------------------------------------------------------


def test_masks_go_through_one_codec_and_images_through_the_other():
    masks, images = codec(2), codec(1, latent_channels=4)
    space = Latent(masks, image=Frozen(images))
    m, x = volumes(6, 5, 4, channels=2), volumes(6, 5, 4)
    assert torch.equal(space.encode(m), masks.encode(m))
    assert torch.equal(space.encode_image(x), images.encode(x))
    assert (space.channels(2), space.image_channels(1)) == (3, 4)
    space.fit([m])
    space.image_codec.fit([x])
    for z in (space.encode(m), space.encode_image(x)):
        torch.testing.assert_close(
            z.mean((0, 2, 3, 4)), torch.zeros(z.shape[1]), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            z.std((0, 2, 3, 4), correction=0), torch.ones(z.shape[1]), atol=1e-5, rtol=0
        )


def test_without_a_codec_of_its_own_an_image_is_coded_as_what_is_diffused():
    space = Latent(codec())
    space.fit([volumes(4, 4, 4, seed=1)])
    x = volumes(4, 4, 4)
    assert space.image_codec is None
    assert torch.equal(space.encode_image(x), space.encode(x))


def test_slices_show_images_slice_by_slice():
    space = Slices(Latent(codec(2, **PLANAR), image=Strided(1, (1, 2, 2), planar=True)), "h")
    x = volumes(6, 5, 4)
    changed = x.clone()
    changed[:, :, :, 3] += 1
    moved = (space.encode_image(changed) - space.encode_image(x)).abs().amax((0, 1, 3, 4))
    assert (moved > 0).tolist() == [False, False, False, True, False]
    assert space.encode_image(x).shape[2:] == space.grid((6, 5, 4))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (lambda: Frozen(codec(strides=((1, 2, 2),))), r"stride \[2, 2, 2\].*got \[1, 2, 2\]"),
        (lambda: Strided(1, (4, 4, 4)), r"got \[4, 4, 4\]; use an autoencoder of images"),
    ],
)
def test_codecs_on_two_grids_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        Latent(codec(), image=image())


def test_a_codec_across_slices_beside_one_within_is_refused():
    with pytest.raises(ValueError, match="expected one that codes slices apart"):
        Latent(codec(**PLANAR), image=Frozen(codec(strides=((1, 2, 2),))))
    with pytest.raises(ValueError, match="expected a codec that sees across slices"):
        Latent(codec(strides=((1, 2, 2),)), image=Frozen(codec(**PLANAR)))


def test_halvings_multiply_to_the_stride():
    assert halvings((4, 2, 1)) == ((2, 2, 1), (2, 1, 1))
    assert halvings((1, 1, 1)) == ()
    with pytest.raises(ValueError, match="powers of two"):
        halvings((3, 2, 1))
    with pytest.raises(ValueError, match="expected 3 widths for the stride"):
        Strided(1, (4, 4, 4), widths=(4, 8))


def test_a_copy_begins_as_the_encoder_that_it_copies():
    autoencoder, x = codec(), volumes(5, 6, 4)
    assert torch.equal(Copied(autoencoder).encode(x), autoencoder.encode(x))


# --- runs -------------------------------------------------------------------------------------

ENCODER = "autoencoder={name: kl, latent_channels: 3, widths: [4, 8], strides: [[2, 2, 2]]}"
LABELS = "recipe={name: label_diffusion, labels: [1]}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("codecs"), cases=6, labels=True)


@pytest.fixture(scope="module")
def images(data, tmp_path_factory):
    words = ["task=autoencoder", ENCODER, "optim.steps=2"]
    return train(tiny(data, tmp_path_factory.mktemp("images") / "run", *words))


@pytest.fixture(scope="module")
def other(data, tmp_path_factory):
    words = ["task=autoencoder", ENCODER, "optim.steps=2", "seed=1"]
    return train(tiny(data, tmp_path_factory.mktemp("other") / "run", *words))


def words_of(states, image):
    return [f"space={{name: latent, autoencoder: {states}, image: {image}}}", LABELS]


KINDS = {
    "run": "{run}",
    "frozen": "{{name: frozen, autoencoder: {run}}}",
    "copied": "{{name: copied, autoencoder: {run}}}",
    "strided": "{{name: strided, widths: 4}}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_with_two_codecs_resume_exactly(kind, data, images, other, tmp_path):
    words = [*words_of(other, KINDS[kind].format(run=images)), "validation.every=1"]
    whole = train(tiny(data, tmp_path / "whole", *words))
    train(tiny(data, tmp_path / "parts", *words, "optim.steps=2"))
    parts = train(tiny(data, tmp_path / "parts", *words))
    assert figures(whole) == figures(parts)
    one, two = (checkpoint.find(run, "last") for run in (whole, parts))
    assert one.digest == two.digest
    state = one.tensors("weights")
    learnt = [n for n in state if n.startswith("space.image.") and ".encoder." in n]
    trained = kind in ("copied", "strided")
    assert bool(learnt) == trained, "what is trained is in the checkpoint, and nothing else"
    assert not [n for n in state if ".autoencoder." in n]
    _, model = load_run(whole)
    assert not bool((model.space.image.scale == 1).any()), "it was fitted"
    if trained:
        _, first = load_run(whole, which="last", weights="weights")
        begun = train(tiny(data, tmp_path / "one", *words, "optim.steps=1"))
        _, early = load_run(begun, which="last", weights="weights")
        moved = zip(first.space.image.parameters(), early.space.image.parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in moved), "it learns"


def test_a_run_stands_alone_and_refuses_other_weights(data, images, other, tmp_path):
    words = words_of(other, images)
    run = train(tiny(data, tmp_path / "run", *words, "optim.steps=1"))
    assert {p.name for p in (run / "borrowed").iterdir()} == {"autoencoder", "image"}
    x = torch.zeros(1, 1, 8, 8, 8)
    _, model = load_run(run)
    _, wanted = load_run(images)
    raw = model.space.image.autoencoder.encode(x)
    assert torch.equal(raw, wanted.encode(x))
    # the copies are swapped: both are intact, and are not what the run was trained with
    names = [run / "borrowed" / name for name in ("autoencoder", "image", "aside")]
    names[0].rename(names[2])
    names[1].rename(names[0])
    names[2].rename(names[1])
    with pytest.raises(DataError, match=r"autoencoder/manifest\.json: differs from the one that"):
        load_run(run)
    rebind(run)
    with pytest.raises(DataError, match="are not those that it was trained with"):
        load_run(run)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("runs/nowhere", "space.image = runs/nowhere: no such run; train it first"),
        ("{name: frozen}", "space.image.autoencoder: expected the folder"),
        ("{name: frosen}", "Did you mean 'frozen'"),
        ("{widths: 4}", "space.image: expected the folder of an autoencoder's run, or a mapping"),
        ("{name: strided, inputs: 1}", "space.image.inputs: is derived, not configured"),
    ],
)
def test_mistakes_are_named(image, message, data, other, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(tiny(data, tmp_path / "run", *words_of(other, image)))
