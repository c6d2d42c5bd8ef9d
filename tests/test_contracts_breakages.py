"""Deliberate breakages, at least one per family: each is caught by the contract of its family.

The table `BROKEN` lists them: family, what is broken, and a part of the sentence that says so.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_sets import folder as plain_folder
from data_sets import touch
from foreign.foreign_volumes.tasks import Supervised
from foreign_tasks import Distillation

from volumediff import config
from volumediff.adapters._base import Adapter
from volumediff.adapters.lora import LoRA
from volumediff.anomaly import (
    adaptation,
    baselines,
    combinations,
    detectors,
    ensemble,
    normalization,
    post,
    reconstruction,
    score,
    selectors,
    tails,
    threshold,
)
from volumediff.anomaly.editing.plain import Plain
from volumediff.anomaly.fitted.atlas_z import AtlasZ
from volumediff.anomaly.maps._base import Map
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.anomaly.routes.identity import Identity
from volumediff.anomaly.routes.scan import Scan
from volumediff.autoencoders.kl import KL
from volumediff.classifiers.encoder import Encoder
from volumediff.codings import signed
from volumediff.conditioners.add import AddConditioner
from volumediff.contracts import check, covered
from volumediff.data import contrasts, intensity, regions
from volumediff.data.corruptions.coarse import Coarse
from volumediff.data.layouts.folder import Folder
from volumediff.guidance.dynamic_clipping import DynamicClipping
from volumediff.image_codecs.frozen import Frozen
from volumediff.image_codecs.strided import Strided
from volumediff.importers.wdm import WDM
from volumediff.kernels.cold import Cold
from volumediff.kernels.edm import EDM
from volumediff.kernels.gaussian import Gaussian
from volumediff.losses import dice
from volumediff.networks.unet import UNet
from volumediff.noise import GaussianNoise as White
from volumediff.noise import Noise
from volumediff.pretexts.rotation import Rotation
from volumediff.raters import DrawnRater
from volumediff.recipes.class_conditional import ClassConditional
from volumediff.recipes.healthy import Healthy
from volumediff.recipes.inpainting import Inpainting
from volumediff.residual_segmenters.siamese import Siamese
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule
from volumediff.segmentation.label_ensembles import Flips
from volumediff.segmentation.label_fusions import Fusing, Mean
from volumediff.segmentation.label_posts import MinComponentLabelPost
from volumediff.segmentation.predictors.one_step import OneStep
from volumediff.segmentation.result import Segmentation
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.tasks import Task
from volumediff.tasks.diffusion import DiffusionTask
from volumediff.time_grids import UniformTimeGrid
from volumediff.times.uniform import Uniform
from volumediff.translation.translators.diffusion import DiffusionTranslator
from volumediff.translation.translators.polynomial import Polynomial
from volumediff.weightings import EpsWeighting, UWeighting

BROKEN = []


def broken(family, sentence, **arguments):
    """Puts a class into the table."""

    def enter(cls):
        BROKEN.append(
            pytest.param(family, cls, sentence, arguments, id=f"{family}-{cls.__name__}")
        )
        return cls

    return enter


# maps


@broken("map", "negative")
class Signed(Map):
    def __call__(self, x, healthy, *, foreground, spacing_mm):
        return (x - healthy).mean(dim=1, keepdim=True) * foreground


@broken("map", "not finite")
class Undefined(L1):
    def __call__(self, x, healthy, *, foreground, spacing_mm):
        a = super().__call__(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
        return a / a.flatten(1).median(1).values[:, None, None, None, None] * foreground


@broken("map", "not zero outside")
class Everywhere(Map):
    def __call__(self, x, healthy, *, foreground, spacing_mm):
        return (x - healthy).abs().mean(dim=1, keepdim=True)


@broken("map", "depends on its batch")
class ByTheBatch(L1):
    def __call__(self, x, healthy, *, foreground, spacing_mm):
        a = super().__call__(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
        return a / a.max()


@broken("map", "writes into the volume")
class InPlace(L1):
    def __call__(self, x, healthy, *, foreground, spacing_mm):
        return x.sub_(healthy).abs().mean(dim=1, keepdim=True) * foreground


@broken("map", "give another map")
class Drawn(L1):
    def __call__(self, x, healthy, *, foreground, spacing_mm):
        a = super().__call__(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
        return a * torch.rand_like(a)


# samplers, kernels, schedules, noise


@broken("sampler", "come out with mean", variance=1.0)
class HalfTheNoise(Ancestral):
    def step(self, step):
        return super().step(replace(step, noise=lambda: 0.5 * step.noise()))


@broken("sampler", "is not refused")
class TakesAnything(DDIM):
    def check(self, kernel):
        pass


@broken("sampler", "not followed")
class Deaf(DDIM):
    def step(self, step):
        own = step.evaluate(step.z_t, step.t)
        return super().step(replace(step, prediction=own))


@broken("kernel", "depends on its batch")
class OneTime(Cold):
    def corrupt(self, z_0, t, noise):
        return super().corrupt(z_0, t.mean().expand_as(t) * (t > 0), noise)


@broken("kernel", "read as another clean state")
class ReadWrongly(Gaussian):
    def predict(self, output, z_t, t):
        return super().predict(0.8 * output, z_t, t)


@broken("kernel", "true clean state does not give it")
class NoisyEnd(Gaussian):
    def step(self, prediction, z_t, t, s, noise):
        return super().step(prediction, z_t, t, s, noise) + 0.01 * noise


@broken("schedule", "does not fall strictly")
class Steps(LinearSchedule):
    def log_alpha(self, t):
        return super().log_alpha((t * 10).ceil() / 10)


@broken("schedule", "variance_preserving is False")
class Modest(LinearSchedule):
    """Preserves variance, and says that it does not."""

    variance_preserving = False


@broken("schedule", "not the derivatives")
class Rushed(LinearSchedule):
    def rates(self, t):
        return tuple(2 * rate for rate in super().rates(t))


@broken("kernel", "does not declare its path")
class Pathless(Gaussian):
    path = ""


@broken("kernel", "sees of a sample depends on its batch")
class ScaledByTheBatch(EDM):
    def shown(self, z_t, t):
        return z_t / z_t.std(), t


@broken("kernel", "not finite", schedule="exploding")
class EndlessClock(EDM):
    def shown(self, z_t, t):
        return z_t, -self.schedule.log_snr(t)


@broken("weighting", "size depends on the others")
class AveragedOverTheBatch(UWeighting):
    def size(self, schedule, t):
        return super().size(schedule, t) * t.mean()


@broken("weighting", "not finite")
class Inverse(EpsWeighting):
    def size(self, schedule, t):
        return 1 / schedule(t)[0]


@broken("time_grid", "do not fall")
class Lingering(UniformTimeGrid):
    def times(self, schedule, steps, start=1.0):
        found = super().times(schedule, steps, start)
        return torch.where(found < 0.2, 0.0, found)


@broken("time_grid", "go from")
class FromTheTop(UniformTimeGrid):
    def times(self, schedule, steps, start=1.0):
        return super().times(schedule, steps)


@broken("noise", "does not declare its kind")
class Kindless(White):
    kind = ""


@broken("times", "Times do not fall")
class Rising(Uniform):
    def at(self, u, schedule):
        return self.low + (self.high - self.low) * (u + 1e-9)


@broken("times", "outside of the support")
class Beyond(Uniform):
    @property
    def support(self):
        return 0.5, 1.0


@broken("times", "depends on its batch")
class Stratified(Uniform):
    def draw(self, keys, schedule, *, device="cpu"):
        return super().draw(keys, schedule, device=device).sort().values


@broken("schedule", "must be clean")
class NeverClean(Cosine):
    def log_alpha(self, t):
        return super().log_alpha(0.01 + 0.99 * t)


@broken("noise", "variance over draws")
class Quiet(White):
    def __call__(self, shape, *parts, device="cpu"):
        return 0.7 * super().__call__(shape, *parts, device=device)


@broken("noise", "mean over draws")
class Offset(White):
    def __call__(self, shape, *parts, device="cpu"):
        return (super().__call__(shape, *parts, device=device) + 1) / 2**0.5


@broken("noise", "more than a key")
class Unkeyed(Noise):
    kind = "white"

    def __call__(self, shape, *parts, device="cpu"):
        return torch.randn(shape, device=device)


# spaces, networks, autoencoders


@broken("space", "squared distances")
class Unnormalised(Wavelet):
    def analysis(self, x):
        return super().analysis(x) / 2

    def synthesis(self, raw, shape=None):
        return super().synthesis(2 * raw, shape)


@broken("space", "unit variance")
class HalfTheField(Voxel):
    def noise(self, field):
        return field / 2


@broken("space", "outside of the mask")
class NarrowMask(Wavelet):
    def mask(self, m):
        return (super().mask(m.roll(2, -1))).clamp(0, 1)


@broken("network", "see each other")
class Mixing(UNet):
    def body(self, x, e):
        return super().body(x - 0.1 * x.mean(dim=0, keepdim=True), e)


# The three faults of published image branches: a layer that is made at random in every step, a
# filter for one size, and the image branch run again in every step.


@broken("conditioner", "does not give the same output")
class RandomLayer(AddConditioner):
    """MedSegDiff's first version."""

    def forward(self, h, place, carried, e):
        layer = torch.nn.Conv3d(h.shape[1], h.shape[1], 1).to(h)
        return super().forward(layer(h), place, carried, e)


@broken("conditioner", "size .* is refused")
class SizeLocked(AddConditioner):
    """MedSegDiff's FF-Parser, whose weights are those of one grid."""

    def __init__(self, *, host):
        super().__init__(host=host)
        self.weight = torch.nn.Parameter(torch.ones(host.layers.widths[0], 4, 4, 3, 2))

    def forward(self, h, place, carried, e):
        spectrum = torch.fft.rfftn(h, dim=(2, 3, 4)) * torch.view_as_complex(self.weight)
        filtered = torch.fft.irfftn(spectrum, s=h.shape[2:], dim=(2, 3, 4))
        return super().forward(filtered, place, carried, e)


@broken("conditioner", "belongs in prepare")
class EveryStep(AddConditioner):
    """SegDiff's code."""

    def prepare(self, image):
        return (image,)

    def forward(self, h, place, carried, e):
        return super().forward(h, place, (self.encoder(carried[0]),), e)


@broken("conditioner", "see each other")
class MeanImage(AddConditioner):
    def prepare(self, image):
        return super().prepare(image - 0.1 * image.mean(dim=0, keepdim=True))


@broken("conditioner", "without a gradient")
class Idle(AddConditioner):
    def __init__(self, *, host):
        super().__init__(host=host)
        self.idle = torch.nn.Linear(1, 1)


@broken("network", r"does not depend on Condition\.label")
class ForgetsTheClass(UNet):
    def forward(self, z_t, t, condition=None):
        if condition is not None and condition.label is not None:
            condition = condition.replace(label=torch.zeros_like(condition.label))
        return super().forward(z_t, t, condition)


class RandomStart(torch.nn.Module):
    def __init__(self, correction):
        super().__init__()
        self.correction = correction
        torch.nn.init.normal_(correction.up)

    def forward(self, weight):
        return self.correction(weight)


@broken("adapter", "before it is trained")
class ChangesAtOnce(LoRA):
    def correction(self, weight):
        return RandomStart(super().correction(weight))


class IntoTheWeight(torch.nn.Module):
    def __init__(self, correction):
        super().__init__()
        self.correction = correction

    def forward(self, weight):
        with torch.no_grad():
            weight.copy_(self.correction(weight))
        return self.correction(weight)


@broken("adapter", "writes into the weight")
class Overwrites(LoRA):
    def correction(self, weight):
        return IntoTheWeight(super().correction(weight))


@broken("pretext", "depends on the batch")
class OfTheBatch(Rotation):
    def loss(self, encoder, x, keys):
        return super().loss(encoder, x, keys) + x.mean()


@broken("pretext", "The encoder learns nothing")
class Detached(Rotation):
    def loss(self, encoder, x, keys):
        with torch.no_grad():
            features = encoder(x)
        drawn = torch.tensor([key % 7 for key in keys])
        return F.cross_entropy(self.head(features), drawn, reduction="none")


@broken("classifier", "do not depend on the time")
class Timeless(Encoder):
    def forward(self, z_t, t):
        return super().forward(z_t, torch.zeros_like(t))


@broken("residual_segmenter", "do not depend on the volume")
class OneEyed(Siamese):
    def forward(self, residual, x):
        return super().forward(residual, torch.zeros_like(x))


@broken("autoencoder", "draws random numbers")
class Restless(KL):
    def reconstruct(self, x):
        return super().reconstruct(x) + 0.01 * torch.randn_like(x)


@broken("autoencoder", "another's", adversarial=0.1)
class TrainsTheJudge(KL):
    def loss(self, player, x, *, generator):
        parts = super().loss(player, x, generator=generator)
        if player == "autoencoder":
            parts["loss"] = parts["loss"] + self.discriminator(x).mean()
        return parts


@broken("image_codec", "depends on its batch")
class CentredByTheBatch(Strided):
    def encode(self, x):
        return super().encode(x - x.mean())


@broken("image_codec", "whether it is trained")
class SaysThatItLearns(Frozen):
    trained = True


@broken("guidance", "not of one state")
class MovesOne(DynamicClipping):
    def __call__(self, denoise):
        def guided(z_t, t, condition):
            p = denoise(z_t, t, condition)
            return replace(p, x0=0.9 * p.x0)

        return guided


@broken("guidance", "Other conditions")
class Forgetful(DynamicClipping):
    def __call__(self, denoise):
        return super().__call__(lambda z, t, c: denoise(z, t, c.replace(scalars=None)))


# data


@broken("importer", "must be refused")
class TakesAll(WDM):
    def config(self, source):
        return {"network": "unet"}


@broken("intensity", "order of intensities")
class Inverted(intensity.Window):
    def apply(self, x, mask, *, limits, channel=0):
        y = super().apply(x, mask, limits=limits, channel=channel)
        return np.where(mask, -y, y)


@broken("intensity", "does not give the intensities back")
class Lost(intensity.ZScore):
    def invert(self, y, *, limits, channel=0):
        return super().invert(y, limits=limits, channel=channel) + 1


@broken("contrast", "depends on its place in the list")
class Listed(contrasts.AnyContrast):
    def __call__(self, structures, key):
        return super().__call__(structures, key).sort(0).values


@broken("contrast", "depends on which others there are")
class Crowded(contrasts.AnyContrast):
    def __call__(self, structures, key):
        return super().__call__(structures, key) / len(structures)


@broken("tail", "A higher value is less surprising")
class Falling(tails.OwnRanks):
    def surprise(self, values, statistics):
        found = super().surprise(values, statistics)
        return found.max() - found


@broken("tail", "A lesion does not stand out")
class Unmoved(tails.HealthyTail):
    def surprise(self, values, statistics):
        return torch.zeros_like(values, dtype=torch.float64)


@broken("combination", "gives a lower map")
class Against(combinations.Fisher):
    def __call__(self, f, statistics):
        return (50 - super().__call__(f, statistics)).clamp(min=0)


@broken("combination", "A contribution is negative")
class Owed(combinations.MinimumP):
    def contributions(self, f, statistics):
        return -f


@broken("corruption", "outside the foreground")
class Spills(Coarse):
    def __call__(self, x, foreground, *, donor, spacing_mm, key):
        whole = torch.ones_like(foreground)
        return super().__call__(x, whole, donor=donor, spacing_mm=spacing_mm, key=key)


@broken("corruption", "another change")
class Unrepeatable(Coarse):
    def __call__(self, x, foreground, *, donor, spacing_mm, key):
        key = int(torch.randint(2**30, ()))
        return super().__call__(x, foreground, donor=donor, spacing_mm=spacing_mm, key=key)


@broken("region", "is empty")
class MaybeNothing(regions.Cells):
    def __call__(self, foreground, *, spacing_mm, key):
        return super().__call__(foreground, spacing_mm=spacing_mm, key=key) & (key % 2 == 0)


@broken("recipe", "gives another target")
class Dice(Inpainting):
    def target(self, subject, *, atlas, key):
        return super().target(subject, atlas=atlas, key=int(torch.randint(2**30, ())))


@broken("recipe", "channels says")
class Boastful(Healthy):
    def channels(self, c):
        return c + 1


@broken("recipe", "depend on the key")
class NotFixed(ClassConditional):
    fixed: ClassVar[bool] = True

    def target(self, subject, *, atlas, key):
        made = super().target(subject, atlas=atlas, key=key)
        return replace(made, x=made.x * (1 - key % 2 / 10))


# blocks of localization


@broken("route", "no noise enters")
class Unadmitted(Diffuse):
    stochastic: ClassVar[bool] = False


@broken("route", "is negative")
class RawMaps(Scan):
    own_map: ClassVar[bool] = False

    def __call__(self, context, level, *, editing, sampler):
        for volume in super().__call__(context, level, editing=editing, sampler=sampler):
            context.maps.append((context.x - volume).mean(1, keepdim=True))
        yield from ()


@broken("route", "shape")
class Cropped(Identity):
    def __call__(self, context, level, *, editing, sampler):
        for volume in super().__call__(context, level, editing=editing, sampler=sampler):
            yield volume[..., 1:]


@broken("editing", "not from")
class StopsEarly(Plain):
    def times(self, times):
        return times[:-1]


@broken("editing", "negative")
class SignedWeight(Plain):
    def weigh(self, context, scores):
        return scores - scores.mean()


@broken("selector", "other values than 0 and 1")
class Soft(selectors.FoundSelector):
    def __call__(self, context):
        return 0.5 * super().__call__(context)


@broken("selector", "undeclared")
class Peeks(selectors.Given):
    takes_region: ClassVar[bool] = False

    def __call__(self, context):
        if context.region is None:
            return torch.ones_like(context.x)
        return super().__call__(context)


@broken("ensemble", "Equal maps")
class Sum(ensemble.MeanEnsemble):
    def inverse(self, mean):
        return 2 * mean


@broken("post", "outside the foreground")
class Dilates(post.Close):
    def __call__(self, value, *, foreground, spacing_mm):
        everywhere = torch.ones_like(foreground)
        return super().__call__(value, foreground=everywhere, spacing_mm=spacing_mm) | ~foreground


@broken("post", "a second time")
class NeverDone(post.Erode):
    idempotent: ClassVar[bool] = True

    def __call__(self, value, *, foreground, spacing_mm):
        return 0.9 * super().__call__(value, foreground=foreground, spacing_mm=spacing_mm)


@broken("map", "float64")
class SinglePrecision(L1):
    def __call__(self, x, healthy, *, foreground, spacing_mm):
        a = super().__call__(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
        return a.float()


@broken("post", "no place")
class Unranked(post.Smooth):
    rank: ClassVar[int] = post.MASK


@broken("threshold", "does not rise with quantile")
class Backwards(threshold.OwnQuantile):
    def of(self, a, *, foreground):
        flipped = threshold.OwnQuantile(1 - self.quantile)
        return flipped.of(a, foreground=foreground)


@broken("threshold", "gives a threshold without the truth")
class Cheats(threshold.BestThreshold):
    def __call__(self, calibration):
        return 0.5


@broken("loss", "depends on its batch")
class DiceOfTheBatch(dice.Dice):
    def __call__(self, context):
        return super().__call__(context).mean().expand(len(context.x))


@broken("loss", "costs as much as a wrong one")
class Rewards(dice.Dice):
    def __call__(self, context):
        return -super().__call__(context)


@broken("score", "A more abnormal volume")
class Lower(score.MeanScore):
    def __call__(self, scores, *, foreground, errors=None, healthy=None):
        return -super().__call__(scores, foreground=foreground)


@broken("score", "outside the foreground")
class WholeVolume(score.MeanScore):
    def __call__(self, scores, *, foreground, errors=None, healthy=None):
        return float(scores.mean())


@broken("method", "other fingerprints")
class OtherEveryTime(Localizer):
    def identity(self):
        return {**super().identity(), "at": id(self)}


@broken("normalization", "on average")
class NotCentred(normalization.ByIntensity):
    def __call__(self, residual, statistics):
        return super().__call__(residual, {**statistics, "mean": 0 * statistics["mean"]})


@broken("adaptation", "after the adaptation")
class Forever(adaptation.AffineAdaptation):
    @contextmanager
    def adapted(self, model, example, *, suspected, key):
        with super().adapted(model, example, suspected=suspected, key=key):
            yield
        with torch.no_grad():
            next(model.network.parameters()).add_(1e-3)


@broken("baseline", "depends on the key")
class Guess(baselines.Prevalence):
    def find(self, model, example, *, key):
        found = super().find(model, example, key=key)
        return replace(found, map=found.map * (key % 7))


@broken("detector", "must be refused")
class Unchecked(detectors.PosteriorMean):
    def check(self, model):
        pass


@broken("fitted", "give another fit")
class Moody(AtlasZ):
    def learn(self, model, examples, *, key):
        fit = super().learn(model, examples, key=key)
        return replace(fit, tensors={**fit.tensors, "mood": torch.rand(1)})


@broken("reconstruction", "nothing is drawn")
class Noisy(reconstruction.SinglePass):
    def __call__(self, view):
        return super().__call__(view) + 0.1 * (view.key % 5)


# tasks


@broken("task", "does not follow from the keys")
class DrawsItsOwn(Supervised):
    def loss(self, player, batch):
        return super().loss(player, batch) * (1 + torch.rand(()))


@broken("task", "Weights do not depend on the seed")
class AlwaysTheSame(Supervised):
    @classmethod
    def build(cls, config, run):
        torch.manual_seed(0)
        return super().build(config, run)


@broken("task", "Weights that are not trained are saved: teacher")
class SavesItsTeacher(Distillation):
    @classmethod
    def build(cls, config, run):
        task = super().build(config, run)
        task.frozen = ()
        return task


@broken("task", "not one loss of network per sample")
class Averages(Supervised):
    def loss(self, player, batch):
        return super().loss(player, batch).mean()


@broken("task", "on a sample depends on its batch")
class Leaky(DiffusionTask):
    def loss(self, player, batch):
        each = super().loss(player, batch)
        return each + each.mean()


@broken("task", "The same seed gives other weights")
class Unseeded(DiffusionTask):
    @classmethod
    def build(cls, config, run):
        with torch.random.fork_rng():
            torch.seed()
            return super().build(config, run)


@broken("task", "is not finite")
class Infinite(DiffusionTask):
    def loss(self, player, batch):
        return super().loss(player, batch) * float("inf")


@broken("task", "Resolving twice")
class NeverResolved(Supervised):
    @classmethod
    def resolve(cls, config):
        return config.model_copy(update={"seed": config.seed + 1})


# segmentation


@broken("segmenter", "give other labels")
class OwnDraws(Composed):
    def segment(self, model, x, **others):
        found = super().segment(model, x, **others)
        return replace(found, probabilities=found.probabilities * (0.9 + 0.1 * torch.rand(1)))


@broken("segmenter", "not listed")
class OtherValue(Composed):
    def segment(self, model, x, **others):
        class Renamed(Segmentation):
            labels = property(lambda self: super().labels * 2)

        found = super().segment(model, x, **others)
        return Renamed(found.values, found.probabilities, found.variance)


@broken("segmenter", "missed")
class Blind(Composed):
    def segment(self, model, x, **others):
        return super().segment(model, torch.zeros_like(x), **others)


@broken("segmenter", "variance is negative")
class WrongSign(Composed):
    def segment(self, model, x, **others):
        found = super().segment(model, x, **others)
        return replace(found, variance=-1 - found.variance)


@broken("coding", "do not come back")
class NeverThere(signed.Signed):
    def decode(self, x, *, spacing_mm):
        return super().decode(x, spacing_mm=spacing_mm) * 0.5


@broken("coding", "sum to more than one")
class Overlapping(signed.Signed):
    def decode(self, x, *, spacing_mm):
        return ((x + 1) / 2).clamp(0, 1)


@broken("rater", "no reader gave")
class Inventive(DrawnRater):
    def opinion(self, label, readers, *, key):
        found = super().opinion(label, readers, key=key)
        return replace(found, label=found.label + (found.label == 5))


@broken("rater", "same key")
class Fickle(DrawnRater):
    def opinion(self, label, readers, *, key):
        return super().opinion(label, readers, key=int(torch.randint(9**9, ())))


@broken("predictor", "depends on the other members")
class Shared(OneStep):
    def memberships(self, model, prepared, draws, **others):
        first = [replace(draw, key=draws[0].key) for draw in draws]
        return super().memberships(model, prepared, first, **others) * (0.9 + 0.01 * len(draws))


@broken("label_ensemble", "Two changes are the same")
class Twice(Flips):
    def changes(self, draw):
        return [draw, draw]


class RemembersTheLast(Fusing):
    def update(self, y, weight):
        self.last = y

    def result(self):
        return self.last


@broken("label_fusion", "order of the members")
class LastOne(Mean):
    def start(self):
        return RemembersTheLast()


@broken("label_post", "of nothing", volume_ml=0.0)
class Fills(MinComponentLabelPost):
    def __call__(self, labels, **others):
        return torch.full_like(labels, 3)


# translation


@broken("translator", "same key gives another draw")
class Keyless(DiffusionTranslator):
    def draws(self, model, sources, *, key, **others):
        return super().draws(model, sources, key=int(torch.randint(9**9, ())), **others)


@broken("translator", "Two draws of one volume are the same", samples=2)
class OneKeyForAll(DiffusionTranslator):
    def draws(self, model, sources, **others):
        for _ in range(self.samples):
            yield next(super().draws(model, sources, **others))


@broken("translator", "every training volume once")
class OneVolume(Polynomial):
    def fit(self, pairs):
        return super().fit([next(iter(pairs))])


@pytest.mark.parametrize(("family", "cls", "sentence", "arguments"), BROKEN)
def test_the_contract_catches_it(family, cls, sentence, arguments):
    plain = issubclass(cls, torch.nn.Module | Task | Adapter)
    cls = cls if plain else dataclass(frozen=True)(cls)
    with pytest.raises(AssertionError, match=sentence):
        check(family, cls, **arguments)


# layouts need an example on the disk


class DropsAFile(Folder):
    def read(self, root):
        cases, problems = super().read(root)
        return cases[:-1], problems


class NamesByPlace(Folder):
    def read(self, root):
        cases, problems = super().read(root)
        return [replace(c, id=f"{root.name}-{c.id}") for c in cases], problems


class Greedy(Folder):
    rank: ClassVar[int] = 0

    def recognises(self, root):
        return True


class Tidies(Folder):
    def read(self, root):
        found = super().read(root)
        (root / "index.json").write_text("[]")
        return found


LAYOUTS = [
    (DropsAFile, "is in no case, and no problem names it"),
    (NamesByPlace, "depend on where the data set lies"),
    (Greedy, "without any volume"),
    (Tidies, "changes the files"),
]


@pytest.mark.parametrize(("cls", "sentence"), LAYOUTS)
def test_the_contract_catches_a_layout(cls, sentence, tmp_path):
    plain_folder(touch(tmp_path))
    with pytest.raises(AssertionError, match=sentence):
        check("layout", cls, root=tmp_path, unused=["**/*_votes.nii.gz"])


METRICS = [
    (lambda h: float(h.edges.mean()), "unit of the map|outside of"),
    (lambda h: float(h.abnormal.sum()) / 1000, "number of equal volumes"),
    (lambda h: float("nan"), "The metric is nan"),
]


@pytest.mark.parametrize(("metric", "sentence"), METRICS)
def test_the_contract_catches_a_metric(metric, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check("metric", metric)


def test_every_family_has_a_breakage():
    assert {p.values[0] for p in BROKEN} | {"layout"} == set(covered()) == set(config.families())
