"""The planner says what a real step holds, and chooses what fits."""

import json
from dataclasses import replace

import pytest
from tiny_app import base, program
from tiny_runs import tiny, write_data

from volumediff.errors import UsageError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.planning import planner
from volumediff.planning.estimates import estimates
from volumediff.planning.overhead import OVERHEAD, PUBLISHED
from volumediff.planning.planner import Traced, at_shape, fastest, ladder, plan, trace, words
from volumediff.planning.step import inference_step, training_step
from volumediff.planning.tracer import OUTSIDE, Peak, Tracer
from volumediff.settings.run_config import load_run_config
from volumediff.tasks import build_task
from volumediff.training.loop import train

__all__ = ["base", "program"]  # fixtures

NET = "network.widths=[8,16]"
ENCODER = "autoencoder.widths=[8,16]"
# Shipped configurations made small, and the words that make them so.
SMALL = {
    "patch": ("patch_64", NET, "crop=[16,16,16]"),
    "wavelet": ("wavelet_64", NET, "crop=null"),
    "latent": ("latent_64", NET, "network.attention_levels=[1]", "crop=null"),
    "pseudo3d": ("pseudo3d_64", NET, "network.attention_levels=[1]", "crop=[32,32,8]"),
    "kl": ("kl_64", ENCODER, "autoencoder.adversarial=0.1", "crop=[16,16,16]", "optim.clip=null"),
    "vq": ("vq_64", ENCODER, "crop=[16,16,16]"),
}
BARE = ("validation.best=null", "validation.previews=0")
RECIPES = {
    "classes": "recipe={name: class_conditional, attribute: group, values: [a, b]}",
    "atlas": "recipe={name: healthy, atlas: true, scalars: [age]}",
    "labels": "recipe={name: label_diffusion, labels: [1, 2]}",
}


def small(name, *extra, size=32):
    config, *rest = SMALL[name]
    shape = f"data.preprocessing.shape=[{size},{size},{size}]"
    return load_run_config(config, [*rest, shape, "optim.batch_size=2", *extra])


def real(config, mode):
    """The same step on real tensors."""
    task = build_task(config)
    step = (training_step if mode == "train" else inference_step)(config, task)
    with Tracer() as tracer:
        step.traced(tracer)
    return {name: peak for name, peak in tracer.stages.items() if name != OUTSIDE}


def check(config, mode):
    predicted, measured = trace(config, mode=mode), real(config, mode)
    assert list(predicted.stages) == list(measured)
    for name, peak in measured.items():
        assert predicted.stages[name].device == pytest.approx(peak.device, rel=0.1), name
        assert predicted.stages[name].host == pytest.approx(peak.host, rel=0.1), name
    assert predicted.peak_gb * 1e9 == pytest.approx(
        max(p.device for p in measured.values()), rel=0.1
    )


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", SMALL)
def test_predicts_what_a_real_step_holds(name, mode):
    check(small(name), mode)


@pytest.mark.parametrize(
    "words",
    [[], ["optim.accumulate=2", "validation.previews=1", "validation.best={volumes: 1}"]],
    ids=["plain", "accumulated"],
)
def test_predicts_the_training_loop_itself(words, tmp_path):
    data = write_data(tmp_path / "data", cases=4, size=(16, 16, 16))
    size = ("data.preprocessing.shape=[16,16,16]", "network.widths=[8,16]", "optim.steps=2")
    config = tiny(data, tmp_path / "run", *size, *words)
    with Tracer() as tracer:
        train(config)
    predicted = trace(config).peak_gb * 1e9
    assert predicted == pytest.approx(tracer.peak.device, rel=0.02)


@pytest.mark.parametrize(
    "words",
    [
        ["memory.checkpoint=true", "memory.dtype=bfloat16"],
        ["memory.checkpoint=true", "memory.slab=4", "memory.offload=true", *BARE],
        ["optim.accumulate=2", "validation.previews=0", "validation.best=null"],
    ],
)
def test_predicts_policies_and_accumulation(words):
    check(small("wavelet", *words), "train")


@pytest.mark.parametrize(
    ("recipe", "mode"), [("classes", "train"), ("atlas", "infer"), ("labels", "train")]
)
def test_predicts_every_recipe(recipe, mode):
    check(small("patch", RECIPES[recipe], *BARE, size=24), mode)


@pytest.mark.slow
def test_predicts_a_larger_step():
    check(small("wavelet", "optim.batch_size=1", "validation.previews=0", size=128), "train")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_every_pipeline_is_planned_at_full_size(mode):
    for name in ("patch", "wavelet", "latent", "pseudo3d", "kl", "vq"):
        config = load_run_config(f"{name}_256", BARE)  # inference has the whole volumes
        assert 0.2 < trace(config, mode=mode).peak_gb < 40


def test_stages_of_training_and_of_whole_volumes_within():
    found = trace(small("latent", size=16))
    assert list(found.stages) == [
        *("encode", "forward", "backward", "optimizer"),
        *("validation encode", "validation denoise", "validation decode"),
    ]
    assert found.stages["validation denoise"].parts["gradients"] == 0
    bare = trace(small("latent", *BARE, size=16))
    assert list(bare.stages) == ["encode", "forward", "backward", "optimizer"]
    parts = bare.stages["optimizer"].parts
    trained = parts["gradients"]
    assert 0 < trained < parts["weights"]  # the frozen autoencoder has weights and no gradients
    # two moments and the average; torch's step counters come on top
    assert 3 * trained <= parts["optimizer"] < 3.01 * trained


def test_slabs_and_host_memory_take_less():
    config = small("wavelet", "space=voxel", *BARE)
    whole, cut, away = (
        trace(config.model_copy(update={"memory": MemoryPolicy(checkpoint=True, **policy)}))
        for policy in ({}, {"slab": 4}, {"slab": 4, "offload": True})
    )
    assert whole.stages["backward"].device > cut.stages["backward"].device
    assert cut.stages["backward"].device > 1.5 * away.stages["backward"].device
    assert whole.host_gb == cut.host_gb == 0 < away.host_gb
    assert estimates(config, training=True, offload_gb=away.host_gb).host_gb > away.host_gb


def test_kernels_that_this_machine_lacks_are_traced_too():
    words = ("space=voxel", "network.attention_levels=[1]", *BARE)
    auto, forced = (
        trace(small("wavelet", *words, f"network.attention={name}", size=16), mode="infer")
        for name in ("auto", "xformers")
    )
    assert auto == forced


def test_shares_of_weights_and_moments():
    """Per process: its share of weights, moments and average, and whole weights on top."""
    words = ["optim.batch_size=4", "memory.dtype=float32"]
    alone, copies, shares = (
        trace(load_run_config("wavelet_64", [*words, f"processes={how}"]))
        for how in ("{number: 1}", "{number: 4}", "{number: 4, shard: true}")
    )
    for name in ("backward", "optimizer"):
        whole, held = copies.stages[name].parts, shares.stages[name].parts
        assert alone.stages[name].parts["weights"] == whole["weights"]
        assert held["weights"] == pytest.approx(1.25 * whole["weights"])
        assert held["optimizer"] == pytest.approx(whole["optimizer"] / 4)
        assert held["gradients"] == whole["gradients"]
        saved = 0.75 * whole["optimizer"] - 0.25 * whole["weights"]
        assert shares.stages[name].device == pytest.approx(copies.stages[name].device - saved)
    assert copies.stages["backward"].parts["activations"] < (
        0.3 * alone.stages["backward"].parts["activations"]
    )


def test_the_memory_of_graphs_stays():
    """Activations of the largest stage are there in all of them, and gradients twice."""
    plain, graphs = (
        trace(load_run_config("wavelet_64", [f"memory.cuda_graphs={how}", "validation.best=null"]))
        for how in ("false", "true")
    )
    most = max(peak.parts["activations"] for peak in plain.stages.values())
    gradients = max(peak.parts["gradients"] for peak in plain.stages.values())
    assert most > plain.stages["optimizer"].parts["activations"]
    for name, peak in graphs.stages.items():
        before = plain.stages[name]
        assert peak.parts["activations"] == most
        assert peak.parts["gradients"] == before.parts["gradients"] + gradients
        more = most - before.parts["activations"] + gradients
        assert peak.device == before.device + more


def test_policies_are_ordered():
    config = small("wavelet", "space=voxel", *BARE, size=16)
    none, saved = (
        trace(config.model_copy(update={"memory": MemoryPolicy(checkpoint=on)}))
        for on in (False, True)
    )
    half = MemoryPolicy(checkpoint=True, dtype="bfloat16")
    less = trace(config.model_copy(update={"memory": half}))
    assert none.stages["backward"].device > 1.3 * saved.stages["backward"].device
    assert saved.stages["backward"].device > 1.2 * less.stages["backward"].device
    assert none.card_gb > saved.card_gb > less.card_gb


def test_the_overhead_covers_what_was_published():
    for traced, published in PUBLISHED.values():
        assert published <= OVERHEAD.card_gb(traced) <= 1.3 * published
    assert OVERHEAD.card_gb(0.0) == pytest.approx(OVERHEAD.context + OVERHEAD.workspace)


def test_the_ladder_goes_from_fast_to_lean():
    policy = MemoryPolicy(dtype="bfloat16", channels_last=True, slab=3)
    families = ladder(policy, mode="train", depth=64)
    assert [[p.checkpoint for p in f] for f in families[:2]] == [[False], [1, 2, True]]
    assert not any(p.slab or p.offload for f in families[:2] for p in f)
    assert [[p.slab for p in f] for f in families[2:]] == [[32, 16, 8], [None, 32, 16, 8, 4]]
    assert [[p.offload for p in f] for f in families[2:]] == [[False] * 3, [True] * 5]
    assert all(p.checkpoint is True for f in families[2:] for p in f)
    assert all(p.dtype == "bfloat16" and p.channels_last for f in families for p in f)
    used = ladder(policy, mode="infer", depth=30)
    assert [[p.slab for p in f] for f in used] == [[None], *[[15, 8, 4]] * 2, [None, 15, 8, 4]]
    assert [{p.recompute_skips for p in f} for f in used] == [{False}, {False}, {True}, {False}]
    assert not any(p.checkpoint for f in used for p in f)
    assert [len(f) for f in ladder(policy, mode="train", depth=5)] == [1, 3, 1]
    graphs = ladder(MemoryPolicy(cuda_graphs=True), mode="train", depth=64)
    assert [{p.cuda_graphs for p in f} for f in graphs] == [{True}, {True}, {False}, {False}]


def choice(limit, *, patient=lambda: True):
    """The chosen policy and those that were looked at; a slab of n planes takes n."""
    seen = []

    def fits(policy):
        seen.append(policy)
        whole = 100 if policy.checkpoint is True else 200 - 20 * policy.checkpoint
        return (policy.slab or whole) - policy.offload <= limit

    families = ladder(MemoryPolicy(), mode="train", depth=64)
    return fastest(families, fits, patient=patient), seen


@pytest.mark.parametrize(
    ("limit", "checkpoint", "slab", "offload"),
    [
        *((200, False, None, False), (180, 1, None, False), (179, 2, None, False)),
        *((100, True, None, False), (99, True, 32, False), (31, True, 16, False)),
        *((8, True, 8, False), (7, True, 8, True), (3, True, 4, True)),
    ],
)
def test_the_fastest_that_fits_is_chosen(limit, checkpoint, slab, offload):
    policy, seen = choice(limit)
    assert repr(policy) == repr(MemoryPolicy(checkpoint=checkpoint, slab=slab, offload=offload))
    texts = [repr(p) for p in seen]
    assert len(texts) == len(set(texts)) <= 1 + 1 + 1 + 4


def test_nothing_is_looked_at_after_the_first_that_fits():
    assert len(choice(200)[1]) == 1
    assert len(choice(100)[1]) == 3
    assert choice(2)[0] is None
    policy, seen = choice(99, patient=lambda: False)
    assert (policy.slab, len(seen)) == (8, 3)


@pytest.fixture
def synthetic(monkeypatch):
    """A step that takes 1 GB per 16 planes of the crop or volume, less under leaner policies, and
    a validation of 1 GB per 32 planes of the volume; a card needs what is live."""

    def pretended(config, *, mode="train"):
        policy = config.memory
        planes = (config.crop if mode == "train" else None) or config.data.preprocessing.shape
        share = 0.5 if policy.dtype == "bfloat16" else 1
        share *= 0.5 if policy.checkpoint is True else 1 - 0.2 * policy.checkpoint
        share *= 0.5 if policy.offload else 1
        share *= (policy.slab or planes[0]) / planes[0]
        stages = {"backward": Peak(int(1e9 * share * planes[0] / 16))}
        if mode == "train" and config.validation.previews:
            stages["validation denoise"] = Peak(
                int(1e9 * config.data.preprocessing.shape[0] / 32), host=7 * policy.offload
            )
        return Traced(policy, stages)

    monkeypatch.setattr(planner, "trace", pretended)
    bare = replace(OVERHEAD, context=0.0, workspace=0.0, growth=0.0, slack=0.0)
    monkeypatch.setattr(planner, "OVERHEAD", bare)


PLAIN = ("memory={dtype: float32}", "crop=[64,64,64]", *BARE)


@pytest.mark.parametrize(
    ("limit", "policy"),
    [
        (4.0, MemoryPolicy()),
        (3.99, MemoryPolicy(checkpoint=1)),
        (2.5, MemoryPolicy(checkpoint=2)),
        (2.0, MemoryPolicy(checkpoint=True)),
        (1.99, MemoryPolicy(checkpoint=True, slab=32)),
        (0.5, MemoryPolicy(checkpoint=True, slab=16)),
        (0.25, MemoryPolicy(checkpoint=True, slab=8)),
        (0.24, MemoryPolicy(checkpoint=True, slab=8, offload=True)),
        (0.125, MemoryPolicy(checkpoint=True, slab=8, offload=True)),
    ],
)
def test_fits_at_the_edges(synthetic, limit, policy):
    config = small("patch", *PLAIN, size=64)
    found = plan(config, vram_gb=limit)
    assert found.fits
    assert repr(found.chosen.policy) == repr(policy)
    assert found.config == config.model_copy(update={"memory": policy})
    assert found.chosen in found.tried
    order = [repr(p) for family in ladder(config.memory, mode="train", depth=64) for p in family]
    places = [order.index(repr(t.policy)) for t in found.tried]
    assert places == sorted(places)


def test_where_nothing_fits_it_says_what_would(synthetic):
    config = small("patch", *PLAIN, size=64)
    found = plan(config, vram_gb=0.01)
    assert found.fits is False
    assert found.chosen.policy == MemoryPolicy(checkpoint=True, slab=4, offload=True)
    assert found.remedies == [
        f"a card with 0.1 GB, 0.1 GB more: {words(found.chosen.policy)}",
        "memory.dtype=bfloat16, which needs 0.0 GB",
    ]  # slabs of four planes take the same in any crop
    shallow = small("patch", *PLAIN, "crop=[4,64,64]", size=64)
    assert not any(t.policy.slab for t in plan(shallow, vram_gb=0.04).tried)
    used = plan(small("patch", *PLAIN, size=64), mode="infer", vram_gb=1e-3)
    assert "(shape" not in " ".join(used.remedies)


def test_smaller_crops_and_volumes_are_found(synthetic, monkeypatch):
    monkeypatch.setattr(planner, "CUTS", ())
    monkeypatch.setattr(planner, "MOST_CUTS", ())
    config = small("patch", *PLAIN, size=64)
    found = plan(config, vram_gb=0.8)  # 0.25 GB per 16 planes under the leanest policy
    assert found.remedies[-1] == "crop=[48,48,48]"
    whole = small("patch", *PLAIN, "crop=null", size=64)
    assert plan(whole, vram_gb=0.6).remedies[-1] == "volumes of 32×32×32 voxels (shape 32 32 32)"
    assert "(shape" not in plan(whole, vram_gb=0.2).remedies[-1]


def test_whole_volumes_within_training_can_be_left_out(synthetic):
    config = small("patch", *PLAIN, "validation.previews=1", size=128)
    found = plan(config, vram_gb=3.0)  # a validation takes 4 GB under any policy
    assert found.fits is False
    assert found.chosen.policy.offload  # of equal policies the leanest
    assert found.remedies[2].startswith("training without whole volumes, which needs 0.1 GB")
    assert found.remedies[3] == "volumes of 96×96×96 voxels (shape 96 96 96)"
    assert found.beside.offload_gb == 7e-9


def test_without_a_limit_the_configured_policy_is_shown_among_others(synthetic):
    found = plan(small("patch", *PLAIN, "memory.slab=5", size=64))
    assert found.fits is None
    assert found.chosen.policy == MemoryPolicy(slab=5)
    assert [(t.policy.checkpoint, t.policy.slab, t.policy.offload) for t in found.tried] == [
        *((False, 5, False), (False, None, False), (2, None, False)),
        *((True, 16, False), (True, 16, True)),
    ]


def test_a_number_of_levels_survives_the_file(synthetic, tmp_path):
    found = plan(small("patch", *PLAIN, size=64), vram_gb=3.99)
    file = tmp_path / "chosen.yaml"
    file.write_text(found.config.to_yaml())
    assert repr(load_run_config(file).memory) == repr(MemoryPolicy(checkpoint=1))
    assert words(found.chosen.policy) == "memory.checkpoint=1"


def test_words_are_overrides():
    policy = MemoryPolicy(dtype="bfloat16", checkpoint=True, slab=16, offload=True)
    assert words(policy) == (
        "memory.dtype=bfloat16 memory.checkpoint=true memory.slab=16 memory.offload=true"
    )
    assert (
        load_run_config(
            "wavelet_64", [*words(policy).split(), "memory.channels_last=false"]
        ).memory
        == policy
    )


def test_shapes():
    config = load_run_config("patch_64")
    assert at_shape(config, None) is config
    other = at_shape(config, (16, 96, 40))
    assert other.data.preprocessing.shape == (16, 96, 40)
    assert other.crop == (16, 32, 32)
    with pytest.raises(UsageError, match="expected positive sizes"):
        at_shape(config, (16, 0, 16))
    with pytest.raises(UsageError, match="shape D H W"):
        plan(load_run_config("wavelet_64", ["data.preprocessing.shape=null"]))


def test_host_disk_and_time(tmp_path):
    config = tiny(tmp_path, tmp_path / "run", "data.workers=3", "optim.steps=100")
    (tmp_path / "run").mkdir()
    log = tmp_path / "run" / "metrics.jsonl"
    rows = [{"step": i + 1, "loss": 1.0, "seconds": 36.0} for i in range(19)]
    log.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = estimates(config, training=True, offload_gb=2.0)
    assert (found.seconds, found.hours) == (None, None)
    with open(log, "a") as file:
        file.write(json.dumps({"step": 20, "loss": 1.0, "seconds": 1e9}) + "\n")
        file.write(json.dumps({"step": 20, "validation_loss": 1.0}) + "\n")
    found = estimates(config, training=True, offload_gb=2.0)
    assert found.hours == pytest.approx(80 * 36 / 3600)
    assert found.host_gb == pytest.approx(found.main_gb + 2 + 3 * found.worker_gb)
    weights = sum(p.numel() for p in build_task(config).module.parameters()) * 4
    assert found.checkpoints_gb == pytest.approx(14 * weights / 1e9, rel=0.01)
    assert found.cache_gb == pytest.approx(6 * 8**3 / 1e9)
    used = estimates(config, training=False, offload_gb=0.0)
    assert (used.workers, used.checkpoints_gb, used.hours) == (0, 0.0, None)
    simulated = config.data.model_copy(update={"root": "population"})
    assert (
        estimates(
            config.model_copy(update={"data": simulated}), training=True, offload_gb=0.0
        ).cases
        == 60
    )


# The program

TINY = ("wavelet_64", "network.widths=[8]", *BARE, "--shape", "16", "16", "16")


def test_the_chosen_configuration_trains(program, tmp_path):
    tiny_yaml, chosen = tmp_path / "tiny.yaml", tmp_path / "chosen.yaml"
    data = write_data(tmp_path / "data", cases=4)
    config = tiny(data, tmp_path / "run", "memory.checkpoint=true", "optim.steps=1")
    tiny_yaml.write_text(config.to_yaml())
    code, table, said = program("plan", tiny_yaml, "--vram", 8, "-o", chosen)
    assert code == 0, said
    assert "fits into 8 GB" in table
    assert f"volumediff train {chosen}" in said
    read = load_run_config(chosen)
    assert read.memory == MemoryPolicy()
    assert read == config.model_copy(update={"memory": MemoryPolicy()})
    train(read)
    assert list((tmp_path / "run" / "checkpoints").glob("last-*"))


def test_json(program):
    code, text, _ = program("plan", *TINY, "--vram", "4", "--json")
    assert code == 0
    found = json.loads(text)
    assert {"peak_gb", "card_gb", "host_gb", "policy", "stages", "fits"} <= set(found)
    assert found["fits"] is True
    assert found["shape"] == [16, 16, 16]
    assert found["policy"]["checkpoint"] is False
    assert found["peak_gb"] == max(s["peak_gb"] for s in found["stages"].values())
    for stage in found["stages"].values():
        assert sum(stage["parts_gb"].values()) == pytest.approx(stage["peak_gb"])
    assert found["overhead"]["source"].endswith("not calibrated on these kernels yet")
    used = json.loads(program("plan", *TINY, "--mode", "infer", "--json")[1])
    assert list(used["stages"]) == ["encode", "denoise", "decode"]
    assert used["fits"] is None


def test_what_does_not_fit_is_exit_code_1_and_writes_nothing(program, tmp_path):
    out = tmp_path / "chosen.yaml"
    code, table, _ = program("plan", *TINY, "--mode", "infer", "--vram", "0.5", "-o", out)
    assert code == 1
    assert "nothing fits into 0.5 GB" in table
    assert "what would fit: a card with 1.3 GB" in table
    assert not out.exists()


WRONG = {
    "vram": ((*TINY, "--vram", "0"), "vram 0: expected"),
    "no number": ((*TINY, "--vram", "nan"), "vram nan: expected"),
    "word": ((*TINY, "--vram", "much"), "--vram"),
    "output": ((*TINY, "-o", "x.yaml"), "--vram GB"),
    "mode": ((*TINY, "--mode", "use"), "--mode"),
    "shape": (("wavelet_64", "--shape", "8", "0", "8"), "expected positive sizes"),
    "config": (("wavlet_64",), "Did you mean 'wavelet_64'?"),
    "key": (("wavelet_64", "memory.slap=3"), "Did you mean 'slab'?"),
    "no shape": (("wavelet_64", "data.preprocessing.shape=null"), "give one as the shape D H W"),
    "parts": (("wavelet_64", "network.widths=[]"), "network"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_one_line(name, program):
    given, reason = WRONG[name]
    code, _, complaint = program("plan", *given)
    assert code == 2
    assert reason in complaint
    assert complaint.count("\n") == 1


def test_tensors_that_32_bits_can_index_are_preferred(monkeypatch):
    def pretended(config, *, mode="train"):
        wide = config.memory.slab is None
        return Traced(config.memory, {"denoise": Peak(1)}, 2**31 if wide else 2**31 - 1)

    monkeypatch.setattr(planner, "trace", pretended)
    found = plan(load_run_config("wavelet_64"), mode="infer", vram_gb=24.0)
    assert found.fits
    assert found.chosen.in_32_bits
    assert found.chosen.policy.slab is not None
    monkeypatch.setattr(
        planner, "trace", lambda c, **_: Traced(c.memory, {"denoise": Peak(1)}, 2**31)
    )
    found = plan(load_run_config("wavelet_64"), mode="infer", vram_gb=24.0)
    assert found.fits
    assert found.chosen.policy.slab is None
    assert not found.to_json()["in_32_bits"]
