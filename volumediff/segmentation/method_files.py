"""Segmentation methods as YAML files: how a run is trained, and how it is asked.

train: {recipe: {name: label_diffusion}}   over the configuration of a pipeline, see
                                            `volumediff.settings.run_config`
builds_on: probe.of                         of methods that need a trained run: its key
only_for: {space: latent}                   of methods that are about one kind of pipeline
predictor: sampled                          the rest are arguments of `composed`, or of the
samples: 5                                  class that `name` says
"""

from collections.abc import Sequence
from typing import Any

from volumediff import config
from volumediff.segmentation.segmenters._base import Segmenter

__all__ = ["COMPOSED", "HALVES", "load_segmenter"]

COMPOSED = "composed"
# Keys that say how a run of the method is trained; the segmenter itself takes the others.
HALVES = ("train", "builds_on", "only_for")


def load_segmenter(
    name: str, overrides: Sequence[str] = (), *, distilled: bool = False
) -> Segmenter:
    """A segmentation method.

    Arguments:
        name: of a file that ships with the package, the path of a YAML file, or
            `package.module:Class`
        overrides: `key=value` overrides, such as `samples=10` or `sampler.steps=50`
        distilled: whether it is for a run that was distilled to steps of its own: these take the
            place of the file's sampler, and overrides may still name another

    Raises:
        UsageError: unknown file, key or component, or a wrong value
    """
    if ":" in name:
        tree: dict[str, Any] = config.overridden({"name": name}, overrides)
    else:
        tree = config.load(config.config_path("segmentation", name))
        own = ["sampler=student"] if distilled and tree.get("sampler") else []
        tree = config.overridden(tree, [*own, *overrides])
    for training in HALVES:
        tree.pop(training, None)
    return config.build("segmenter", {"name": COMPOSED} | tree, where=name)
