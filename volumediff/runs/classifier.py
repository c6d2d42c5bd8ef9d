"""A trained classifier of noisy states, for the diffusion run whose states it knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volumediff.classification import ClassPosterior, StateClassifier
from volumediff.data.seen import Seen
from volumediff.errors import UsageError
from volumediff.runs.trained import Trained
from volumediff.samples.seen import seen_by
from volumediff.storage import checkpoint
from volumediff.tasks import load_task
from volumediff.tasks.state_classifier import states_digest, states_facts

__all__ = ["LoadedClassifier", "load_classifier"]


@dataclass(frozen=True, eq=False)
class LoadedClassifier:
    """A classifier, and where it comes from.

    Arguments:
        posterior: what guidance and saliency take
        facts: run, checkpoint, digest of the weights, and the same of the diffusion run that it
            was trained for; for the records of results
        seen: what its weights have seen
    """

    posterior: ClassPosterior
    facts: Mapping[str, Any]
    seen: Seen


def load_classifier(run: Path | str, trained: Trained) -> LoadedClassifier:
    """The best checkpoint of a classifier's run, on the model's device, in float32.

    Arguments:
        run: folder of the classifier's run
        trained: the diffusion run that it is to guide

    Raises:
        UsageError: no run, no classifier's run, or one that was trained on other states
        DataError: the run is damaged
    """
    run = Path(run)
    # Gradients are multiplied by a large scale: no rounding of half precision.
    task = load_task(run, overrides=["memory.dtype=float32"])
    config, module = task.config, task.lend(StateClassifier)
    if module is None:
        raise UsageError(
            f"classifier {run}: expected the run of a classifier; train one with volumediff "
            f"train configs/classifiers/encoder_64.yaml classifier.of={trained.run}"
        )
    model = trained.diffusion
    theirs = states_digest(
        config, run, space=module.space, kernel=module.kernel, field=module.field
    )
    ours = states_digest(
        trained.config, trained.run, space=model.space, kernel=model.kernel, field=model.field
    )
    source = states_facts(run)
    if theirs != ours:
        raise UsageError(
            f"classifier {run}: was trained on the states of {source['run']}, which are not "
            f"those of {trained.run} (preprocessing, space, normalisation, schedule or noise); "
            f"train one with classifier.of={trained.run}."
        )
    found = checkpoint.find(run, "best")
    assert found is not None, "load_task has just read it"
    module.requires_grad_(False).to(trained.device)
    posterior = ClassPosterior(
        module.log_probability, module.kernel.schedule, module.classifier.classes, found.digest
    )
    return LoadedClassifier(
        posterior,
        {
            "run": str(run.resolve()),
            "checkpoint": found.path.name,
            "weights_sha256": found.digest,
            "of": dict(source),
        },
        seen_by(run),
    )
