"""The contracts of whole methods: kinds, baselines, detectors, fitted methods."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from volumediff import config
from volumediff.anomaly.baselines import IntensityBaseline, Smoothing
from volumediff.anomaly.fitted._base import Fit, Fitted
from volumediff.anomaly.member import Member
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.anomaly.methods.lent import BorrowedAutoencoder
from volumediff.anomaly.methods.rebuilder import Rebuilder
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.autoencoders.kl import KL
from volumediff.contracts.requirements import (
    built,
    equal,
    randomised,
    refused,
    require,
    unmet,
    untouched,
)
from volumediff.contracts.scenes import POSTERIOR, check_map_of, example, models, network_model
from volumediff.recipes.synthetic_anomalies import SyntheticAnomalies

__all__ = ["check_baseline", "check_detector", "check_fitted", "check_method"]


@torch.no_grad()
def _found(method: Method, model: Learned, one: Example, key: int = 1) -> RawLocalization:
    found = untouched({"the volume": one.x}, lambda: method.find(model, one, key=key))
    check_map_of(found.map, "The map")
    if found.healthy is not None:
        require(found.healthy.shape == one.x.shape, "The pseudo-healthy volume has another shape.")
        require(found.healthy.isfinite().all(), "The pseudo-healthy volume is not finite.")
    if found.errors is not None:
        require(found.errors.isfinite().all(), "The errors of the runs are not finite.")
    again = method.find(model, one, key=key)
    equal(again.map, found.map, "The same key gives another map.")
    return found


def check_baseline(cls: type, **arguments: Any) -> None:
    """A map of the volume without any model."""
    method: Method = built(cls, arguments)
    method.check(None)
    found = _found(method, None, example())
    other = _found(method, None, example(), key=2)
    equal(found.map, other.map, "A baseline draws nothing, and its map depends on the key.")


def check_detector(cls: type, **arguments: Any) -> None:
    """A map in [0, 1] that the model is asked for; models of volumes are refused."""
    usual = {"sampler": {"name": "ddim", "steps": 2}, "seeds": 2}
    method: Method = built(cls, arguments, usual)
    model = network_model(SyntheticAnomalies(), image_channels=1)
    method.check(model)
    text = "A model that was not trained to give maps must be refused."
    refused(lambda: method.check(network_model()), text, ValueError)
    refused(lambda: method.check(None), "It must refuse to go without a model.", ValueError)
    found = _found(method, model, example())
    require(float(found.map.max()) <= 1, "The map leaves [0, 1].")
    other = _found(method, model, example(), key=2)
    require(not torch.equal(found.map, other.map), "Its noise does not depend on the key.")
    one = example()
    changed = _found(method, model, replace(one, x=one.x + 0.5))
    require(not torch.equal(found.map, changed.map), "The map does not depend on the volume.")


def check_fitted(cls: type, **arguments: Any) -> None:
    """A fit depends on volumes and key alone, is stored whole, and makes a map."""
    usual = {"steps": 2, "hidden": [4], "average": 1}
    method: Fitted = built(cls, arguments, usual, {"fit": None})
    model = network_model()
    method.check(model)
    text = "It must refuse to work without fitted statistics."
    refused(lambda: method.find(model, example(), key=1), text, ValueError)

    def learn(key: int = 3) -> Fit:
        return method.learn(model, (example(i) for i in range(8)), key=key)

    fit = learn()
    require(fit.volumes == 8, f"It was fitted on 8 volumes, and says {fit.volumes}.")
    require(learn().digest == fit.digest, "The same volumes and key give another fit.")
    require(isinstance(method.recipe, tuple), "recipe must be a tuple of what shapes the fit.")
    hash(repr(method.recipe))
    ready = replace(method, fit=fit)
    found = _found(ready, model, example(20))
    with tempfile.TemporaryDirectory() as folder:
        fit.save(Path(folder) / "fit", owner={"method": "contract"})
        stored = Fit.load(Path(folder) / "fit", owner={"method": "contract"})
    again = _found(replace(method, fit=stored), model, example(20))
    equal(again.map, found.map, "A stored fit gives another map.", atol=1e-5, rtol=1e-4)
    require(float(found.map.max()) > 0, "The map of a lesion is zero.")


def check_method(cls: type, **arguments: Any) -> None:
    """What a kind of method says of itself, and its map on the first model that it takes."""
    usual = {"route": {"name": "diffuse", "level": 0.5}, "sampler": {"name": "ddim", "steps": 2}}
    autoencoder = _autoencoder()
    lent = BorrowedAutoencoder(autoencoder, "closed form")
    two = (Member(label="a", row=IntensityBaseline()), Member(label="b", row=Smoothing()))
    inner = {"row": Rebuilder(), "members": two}
    stand_ins = {"autoencoder": lent, "classifier": POSTERIOR}

    def made() -> Method:
        method: Method = built(cls, arguments, usual, inner)
        return method.bind(lambda request: stand_ins.get(request.loan.kind))

    method = made()
    require(json.dumps(method.identity()), "Its identity must be plain values.")
    require(method.fingerprint == made().fingerprint, "Equal methods have other fingerprints.")
    require(set(method.required()) <= set(method.slots()), "An argument that it needs has no key.")
    kinds = [config.component("method", name) for name in config.available("method")]
    taken = {kind.mark for kind in kinds if kind is not cls and kind.mark is not None}
    require(method.mark not in taken, f"Its mark {method.mark} is that of another kind.")
    require(method.mark is None or method.mark in method.slots(), "Its mark is none of its keys.")
    known = [*models(), autoencoder]
    model = next((m for m in known if unmet(method, m) is None), None)
    require(model is not None, "It refuses every kind of model, each with a reason.")
    _found(method, model, example())


def _autoencoder() -> KL:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = KL(1, latent_channels=2, widths=(4, 4), strides=((2, 2, 2),), blocks=1)
    return randomised(made).eval()
