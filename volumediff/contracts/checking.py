"""Which contract belongs to which family, and running it on one component."""

import importlib
from typing import Any

from volumediff import config
from volumediff.errors import UsageError

__all__ = ["check", "covered"]

# family -> module of this package with its `check_<family>(cls, **arguments)`
CONTRACTS = {
    "task": "tasks",
    "space": "spaces",
    "schedule": "schedules",
    "weighting": "weightings",
    "times": "times",
    "kernel": "kernels",
    "network": "networks",
    "conditioner": "conditioners",
    "classifier": "networks",
    "pretext": "pretexts",
    "residual_segmenter": "networks",
    "autoencoder": "autoencoders",
    "image_codec": "image_codecs",
    "adapter": "adapters",
    "guidance": "guidances",
    "sampler": "samplers",
    "time_grid": "time_grids",
    "importer": "importers",
    "layout": "layouts",
    "recipe": "recipes",
    "loss": "losses",
    "corruption": "corruptions",
    "region": "corruptions",
    "intensity": "intensities",
    "contrast": "contrasts",
    "noise": "noises",
    "map": "maps",
    "route": "routes",
    "editing": "editing",
    "selector": "editing",
    "ensemble": "ensembles",
    "post": "posts",
    "threshold": "thresholds",
    "score": "scores",
    "tail": "fusions",
    "combination": "fusions",
    "normalization": "normalizations",
    "adaptation": "adaptations",
    "baseline": "methods",
    "detector": "methods",
    "fitted": "methods",
    "method": "methods",
    "reconstruction": "reconstructions",
    "coding": "codings",
    "rater": "raters",
    "segmenter": "segmenters",
    "translator": "translators",
    "predictor": "label_parts",
    "label_ensemble": "label_parts",
    "label_fusion": "label_parts",
    "label_post": "label_parts",
}


def covered() -> list[str]:
    """Families that have a contract."""
    return sorted(CONTRACTS)


def check(family: str, component: Any, **arguments: Any) -> None:
    """Checks a component against the contract of its family.

    Arguments:
        family: for example `map`; or `metric`, whose components are functions
        component: a name, `package.module:Class`, or the class itself
        arguments: of its constructor, as in YAML, where a default does not do; some contracts take
            an example more, such as `root` of a layout and `tensors` of an importer

    Raises:
        AssertionError: a property does not hold; one sentence says which
        UsageError: no such family or component, or it cannot be built with these arguments
    """
    if family == "metric":
        from volumediff.contracts.metrics import check_metric, metric_named

        check_metric(metric_named(component) if isinstance(component, str) else component)
        return
    if family not in CONTRACTS:
        config.available(family)
        raise UsageError(f"{family!r} has no contract; choose from {', '.join(covered())}.")
    module = importlib.import_module(f"volumediff.contracts.{CONTRACTS[family]}")
    getattr(module, f"check_{family}")(config.component(family, component), **arguments)
