"""The families of components: where their components are, and the base class of each.

A family is either a folder, in which every file is a component named by its stem, or one file
whose classes are components named in snake case. Files and classes whose names start with an
underscore are helpers. A new family is one more line here.
"""

from dataclasses import dataclass

from volumediff.errors import UsageError

__all__ = ["FAMILIES", "Family", "families", "family"]


@dataclass(frozen=True)
class Family:
    """Components that can stand in for each other.

    Arguments:
        name: as configurations and messages call it
        place: package of the files, or module of the classes
        base: `module:Class` of the abstract class that every component extends
    """

    name: str
    place: str
    base: str

    @property
    def folder(self) -> bool:
        """Whether every file is a component; else every class of one file is."""
        return self.base.partition(":")[0] != self.place

    def holds(self, cls: type) -> bool:
        """Whether a class extends the base of the family."""
        return any(f"{b.__module__}:{b.__qualname__}" == self.base for b in cls.__mro__)


def _folder(name: str, place: str, base: str) -> Family:
    return Family(name, f"volumediff.{place}", f"volumediff.{place}._base:{base}")


def _module(name: str, place: str, base: str) -> Family:
    return Family(name, f"volumediff.{place}", f"volumediff.{place}:{base}")


FAMILIES = {
    each.name: each
    for each in (
        _folder("task", "tasks", "Task"),
        _folder("space", "spaces", "StateSpace"),
        _folder("schedule", "schedules", "Schedule"),
        _module("weighting", "weightings", "Weighting"),
        _folder("times", "times", "TimeDensity"),
        _folder("kernel", "kernels", "Kernel"),
        _folder("network", "networks", "Network"),
        _folder("conditioner", "conditioners", "Conditioner"),
        _folder("autoencoder", "autoencoders", "Reconstructor"),
        _folder("image_codec", "image_codecs", "ImageCodec"),
        _folder("classifier", "classifiers", "Classifier"),
        _folder("pretext", "pretexts", "Pretext"),
        _folder("residual_segmenter", "residual_segmenters", "ResidualSegmenter"),
        _folder("adapter", "adapters", "Adapter"),
        _folder("guidance", "guidance", "Guidance"),
        _folder("sampler", "samplers", "Sampler"),
        _module("time_grid", "time_grids", "TimeGrid"),
        _folder("importer", "importers", "Importer"),
        _folder("layout", "data.layouts", "Layout"),
        _folder("recipe", "recipes", "Recipe"),
        _folder("loss", "losses", "LossTerm"),
        _folder("corruption", "data.corruptions", "Corruption"),
        _folder("route", "anomaly.routes", "Route"),
        _folder("editing", "anomaly.editing", "Editing"),
        _folder("map", "anomaly.maps", "Map"),
        _folder("fitted", "anomaly.fitted", "Fitted"),
        _folder("coding", "codings", "Coding"),
        _folder("segmenter", "segmentation.segmenters", "Segmenter"),
        _folder("predictor", "segmentation.predictors", "Predictor"),
        _folder("translator", "translation.translators", "Translator"),
        _module("label_ensemble", "segmentation.label_ensembles", "LabelEnsemble"),
        _module("rater", "raters", "Rater"),
        _module("label_fusion", "segmentation.label_fusions", "LabelFusion"),
        _module("label_post", "segmentation.label_posts", "LabelPost"),
        _module("intensity", "data.intensity", "Intensity"),
        _module("contrast", "data.contrasts", "Contrast"),
        _module("region", "data.regions", "Region"),
        _module("noise", "noise", "Noise"),
        _module("selector", "anomaly.selectors", "Selector"),
        _module("ensemble", "anomaly.ensemble", "Ensemble"),
        _module("post", "anomaly.post", "Post"),
        _module("threshold", "anomaly.threshold", "Threshold"),
        _module("tail", "anomaly.tails", "Tail"),
        _module("combination", "anomaly.combinations", "Combination"),
        _module("score", "anomaly.score", "Score"),
        _module("normalization", "anomaly.normalization", "Normalization"),
        _module("adaptation", "anomaly.adaptation", "Adaptation"),
        _module("baseline", "anomaly.baselines", "Baseline"),
        _module("detector", "anomaly.detectors", "Detector"),
        _module("reconstruction", "anomaly.reconstruction", "Reconstruction"),
        # last: baselines, detectors and fitted methods are methods, and families of their own
        _folder("method", "anomaly.methods", "Method"),
    )
}


def families() -> list[str]:
    """Names of all families, in alphabetical order."""
    return sorted(FAMILIES)


def family(name: str) -> Family:
    """The family of a name.

    Raises:
        UsageError: no such family; the message lists those there are
    """
    if name not in FAMILIES:
        raise UsageError(f"{name!r} is no family of components: choose from {_listed()}.")
    return FAMILIES[name]


def _listed() -> str:
    return ", ".join(families())
