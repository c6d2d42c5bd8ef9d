"""A trained run in Python: load it, then localize, segment, translate, sample, calibrate and tune.

    run = volumediff.load("runs/brain")
    result = run.localize("sub-01_T1w.nii.gz", method="thor")
    result.map, result.findings

Nothing heavy is imported before a run is loaded, and nothing is written unless a folder is named,
with one exception: a calibration that a method needs is kept in the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volumediff.api.arguments import Place, Report, silent, sources_of
from volumediff.api.layouts import known_layout
from volumediff.api.options import (
    localize_options,
    sample_options,
    segment_options,
    translate_options,
)
from volumediff.api.overrides import words_of
from volumediff.errors import UsageError
from volumediff.inference.options import (
    LocalizeOptions,
    SampleOptions,
    SegmentOptions,
    TranslateOptions,
)

if TYPE_CHECKING:
    from volumediff.anomaly.calibration import Calibration
    from volumediff.api.results import LocalizationResult, SegmentationResult, TranslationResult
    from volumediff.calibration.site import SiteCalibration
    from volumediff.data.survey import Spec
    from volumediff.data.volume import Volume
    from volumediff.runs.model_file import ModelCard
    from volumediff.runs.trained import Trained
    from volumediff.tuning.search import Budget, Grids
    from volumediff.tuning.tuned import Tuned

__all__ = ["Run"]


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A trained run on a device; `volumediff.load` makes one.

    Keyword components change a method as overrides do on the command line:
    `sampler={"name": "ddim", "steps": 10}` is another sampler, `sampler={"steps": 10}` another
    number of steps of the method's own.

    Arguments:
        trained: model, preprocessing, conditions and splits
    """

    trained: "Trained"

    @property
    def folder(self) -> Path:
        """Where the run is."""
        return self.trained.run

    @property
    def card(self) -> "ModelCard | None":
        """What a model file says about itself; None for a run that was trained here."""
        from volumediff.runs.model_file import card_of

        return card_of(self.trained.run)

    def localize(
        self,
        image: Any,
        *,
        method: Place | None = None,
        overrides: Sequence[str] = LocalizeOptions.overrides,
        classifier: Place | None = LocalizeOptions.classifier,
        channels: Sequence[str] | None = LocalizeOptions.channels,
        layout: "Spec" = LocalizeOptions.layout,
        region: Any = None,
        saliency: Any = None,
        site: Place | None = LocalizeOptions.site,
        attributes: Mapping[str, str | float] | None = None,
        fill: Place | None = LocalizeOptions.fill,
        seed: int = LocalizeOptions.seed,
        trace: bool = LocalizeOptions.trace,
        force: bool = LocalizeOptions.force,
        limits: bool = LocalizeOptions.limits,
        calibration_volumes: int | None = LocalizeOptions.calibration_volumes,
        report: Report = silent,
        **components: Any,
    ) -> "LocalizationResult":
        """Localizes anomalies in one image; the result is in the image's own voxel order.

        An image as it comes from the scanner is first prepared as the run's volumes were (brain
        extraction, affine alignment, bias field); one that already lies in their space is not.

        A calibration that the method needs and the run does not have yet is fitted on the run's
        healthy volumes and stored in the run's folder, as `calibrate` does.

        Arguments:
            image: a path (NIfTI, DICOM series, folder of one case), an image of nibabel, TorchIO,
                SimpleITK or MONAI, a `Volume`, `(array, affine)`, or a list of these, one per
                channel
            method: name of a method that ships with the package, or the path of a YAML file; None
                takes that of the model's card, or `scan`
            overrides: `component.argument=value` overrides that change the method
            classifier: run of a classifier of noisy states, for methods that need one
            channels: names of the images in the data; None takes those of the run
            layout: of a folder of data; `auto` decides by the files that are there
            region: mask of what is to be redrawn, for methods such as `inpaint_given`
            saliency: map that takes the place of the method's first pass
            site: healthy volumes of the site that the image is of; its thresholds are used
            attributes: age and the like, for runs that are conditioned on them; `estimate` in
                place of a number looks for the likeliest one
            fill: translation run that draws channels which the image lacks; given as a path, the
                channels that there are, or else a list of those that the run and the translation
                need
            seed: random seed
            trace: whether masks and maps of the components are kept
            force: whether an image is taken that the run was plainly not trained for
            limits: whether it is measured how small a lesion the autoencoder of a model of latents
                keeps; takes two passes through the autoencoder
            calibration_volumes: largest number of healthy volumes, if a calibration is fitted
            report: receives progress lines
            components: of the method, such as `sampler={"name": "ddim", "steps": 10}`

        Raises:
            UsageError: no image, no such method, or a method that does not suit the run
            DataError: the image is refused
        """
        from volumediff.api.images import examined
        from volumediff.api.model_files import method_of
        from volumediff.api.results import LocalizationResult
        from volumediff.inference.localize_files import choose, settle

        method, overrides = method_of(self.trained, method, overrides, LocalizeOptions.method)
        options = localize_options(
            method,
            overrides,
            components,
            classifier=classifier,
            channels=channels,
            layout=layout,
            site=site,
            calibration_volumes=calibration_volumes,
            seed=seed,
            trace=trace,
            force=force,
            limits=limits,
            fill=fill,
        )
        chosen = choose(
            self.trained,
            options,
            region=region is not None,
            saliency=saliency is not None,
            announce=report,
        )
        examination = examined(
            self.trained,
            image,
            channels=channels,
            fills=chosen.fills,
            attributes=attributes,
            layout=layout,
            region=region,
            saliency=saliency,
        )
        # After the image: a calibration can take long, and a wrong image is refused at once.
        work = settle(chosen, announce=report)
        return LocalizationResult(work(examination))

    def segment(
        self,
        image: Any,
        *,
        method: Place | None = SegmentOptions.method,
        overrides: Sequence[str] = SegmentOptions.overrides,
        channels: Sequence[str] | None = SegmentOptions.channels,
        layout: "Spec" = SegmentOptions.layout,
        attributes: Mapping[str, str | float] | None = None,
        fill: Place | None = SegmentOptions.fill,
        seed: int = SegmentOptions.seed,
        force: bool = SegmentOptions.force,
        **components: Any,
    ) -> "SegmentationResult":
        """Segments one image; the result is in the image's own voxel order.

        Arguments:
            image: as for `localize`
            method: name of a segmentation method that ships with the package, or a YAML file;
                None takes the one that the run was configured for, or `label_diffusion`
            overrides: `key=value` overrides that change the method
            channels, layout, attributes, fill: as for `localize`
            seed: random seed
            force: whether an image is taken that the run was plainly not trained for
            components: of the method, such as `samples=10`

        Raises:
            UsageError: no image, no such method, or a run that does not segment
            DataError: the image is refused
        """
        from volumediff.api.images import examined
        from volumediff.api.model_files import method_of
        from volumediff.api.results import SegmentationResult
        from volumediff.inference.segment import segmenting

        method, overrides = method_of(self.trained, method, overrides, SegmentOptions.method)
        options = segment_options(
            method,
            overrides,
            components,
            channels=channels,
            layout=layout,
            seed=seed,
            force=force,
            fill=fill,
        )
        work = segmenting(self.trained, options)
        examination = examined(
            self.trained,
            image,
            channels=channels,
            fills=work.fills,
            attributes=attributes,
            layout=layout,
        )
        return SegmentationResult(work(examination))

    def translate(
        self,
        image: Any,
        *,
        method: Place | None = TranslateOptions.method,
        overrides: Sequence[str] = TranslateOptions.overrides,
        channels: Sequence[str] | None = TranslateOptions.channels,
        layout: "Spec" = TranslateOptions.layout,
        attributes: Mapping[str, str | float] | None = None,
        seed: int = TranslateOptions.seed,
        force: bool = TranslateOptions.force,
        report: Report = silent,
        **components: Any,
    ) -> "TranslationResult":
        """Makes the missing channels of one case; the result is in the first image's voxel order.

        Arguments:
            image: the source channels in the order of the run, as for `localize`
            method: name of a translation method that ships with the package, or a YAML file;
                None takes the one that the run was configured for, or `translation`
            overrides: `key=value` overrides that change the method
            channels: names of the source images in the data; None takes those of the run
            layout, attributes: as for `localize`
            seed: random seed
            force: whether an image is taken that the run was plainly not trained for
            report: receives progress lines of a method that learns first
            components: of the method, such as `samples=5`

        Raises:
            UsageError: no image, no such method, or a run that does not translate
            DataError: the image is refused
        """
        from volumediff.api.images import examined
        from volumediff.api.results import TranslationResult
        from volumediff.inference.translate import translating

        options = translate_options(
            method,
            overrides,
            components,
            channels=channels,
            layout=layout,
            seed=seed,
            force=force,
        )
        work = translating(self.trained, options, announce=report)
        examination = examined(
            self.trained,
            image,
            channels=channels,
            of=work.given,
            attributes=attributes,
            layout=layout,
        )
        return TranslationResult(work(examination))

    def sample(
        self,
        n: int = 1,
        *,
        overrides: Sequence[str] = SampleOptions.overrides,
        shape: tuple[int, int, int] | None = SampleOptions.shape,
        label: int = SampleOptions.label,
        attributes: Mapping[str, str | float] | None = None,
        seed: int = SampleOptions.seed,
        **components: Any,
    ) -> "list[Volume]":
        """Draws new volumes; sample i of a seed is the same in any call.

        Arguments:
            n: number of volumes
            overrides: key=value settings that change the sampler, such as `sampler.steps=20`
            shape: voxels along R, A, S; None takes the shape of the run's volumes
            label: class of the volumes, for runs conditioned on a class; 0 is healthy
            attributes: scalars such as age, for runs that are conditioned on them
            seed: random seed
            components: `sampler={"name": "ddim", "steps": 20}`

        Returns:
            volumes with intensities in about [-1, 1] and axes along R, A, S; `.save(path)` writes
            one

        Raises:
            UsageError: the run cannot sample without an image, or has no shape of its own
        """
        from volumediff.inference.sample import names_of, sampling

        if n < 1:
            raise UsageError(f"n = {n}: expected at least one sample.")
        options = sample_options(
            overrides, components, shape=shape, label=label, attributes=attributes, seed=seed
        )
        work = sampling(self.trained, options)
        return [work.draw(name) for name in names_of(n)]

    def calibrate(
        self,
        method: Place = LocalizeOptions.method,
        *,
        overrides: Sequence[str] = LocalizeOptions.overrides,
        classifier: Place | None = LocalizeOptions.classifier,
        healthy: Place | Sequence[Place] | None = None,
        channels: Sequence[str] | None = LocalizeOptions.channels,
        layout: "Spec" = LocalizeOptions.layout,
        volumes: int | None = None,
        truth: Literal["synthetic", "label"] = "synthetic",
        seed: int = LocalizeOptions.seed,
        report: Report = silent,
        **components: Any,
    ) -> "Calibration":
        """Fits a method's normalization and thresholds on the run's own healthy volumes, and keeps
        them in the run, where `localize` finds them.

        Volumes that are given as `healthy` are added to those of the run first, and stay: every
        later calibration uses them, and evaluations refuse them. The run must not have seen them.

        Arguments:
            method, overrides, classifier, seed, components: as for `localize`
            healthy: volumes or folders of healthy subjects of the same kind of images as the
                run's, prepared in the same way; healthy volumes of another scanner are a site
            channels: names of the images of `healthy`; None takes those of the run
            layout: of the folders of `healthy`
            volumes: most volumes of each part to use; None takes all
            truth: lesions that choose the validation threshold: synthetic ones, or the labels of
                the validation volumes
            report: receives progress lines

        Raises:
            UsageError: the run's data are not reachable, or too few for the method, or a volume
                of `healthy` was seen by the run before
        """
        from volumediff.api.calibrating import method_for
        from volumediff.calibration.healthy import add_healthy
        from volumediff.calibration.of_run import calibrate

        if healthy is not None:
            self.trained.localizes()
            new = add_healthy(
                self.trained,
                sources_of(healthy),
                channels=channels,
                layout=known_layout(layout),
                report=report,
            )
            report(f"{new} healthy volumes are added to the calibration of {self.folder}")
        row = method_for(self.trained, method, overrides, components, classifier, report)
        return calibrate(
            self.trained, row, str(method), seed=seed, limit=volumes, truth=truth, report=report
        )

    def calibrate_site(
        self,
        site: Place,
        method: Place = LocalizeOptions.method,
        *,
        overrides: Sequence[str] = LocalizeOptions.overrides,
        classifier: Place | None = LocalizeOptions.classifier,
        channels: Sequence[str] | None = LocalizeOptions.channels,
        layout: "Spec" = LocalizeOptions.layout,
        volumes: int | None = None,
        seed: int = LocalizeOptions.seed,
        report: Report = silent,
        **components: Any,
    ) -> "SiteCalibration":
        """Fits a method's thresholds on healthy volumes of another site, and stores them in the
        run, where `localize(..., site=...)` finds them.

        Arguments:
            site: folder or datalist of healthy volumes
            channels, layout: as for `localize`
            volumes: most volumes of the site to use; None takes all
            others: as for `calibrate`

        Returns:
            the calibration, how far maps and scores have drifted, and the threshold

        Raises:
            UsageError: the method has nothing that is calibrated, or needs more volumes
        """
        from volumediff.api.calibrating import calibrate_site, method_for

        row = method_for(self.trained, method, overrides, components, classifier, report)
        return calibrate_site(
            self.trained,
            row,
            str(method),
            site,
            channels=channels,
            layout=known_layout(layout),
            seed=seed,
            volumes=volumes,
            report=report,
        )

    def tune(
        self,
        method: Place = LocalizeOptions.method,
        *,
        overrides: Sequence[str] = LocalizeOptions.overrides,
        classifier: Place | None = LocalizeOptions.classifier,
        grids: "Grids | None" = None,
        volumes: int | None = None,
        truth: Literal["synthetic", "label"] = "synthetic",
        budget: "Budget | None" = None,
        seed: int = LocalizeOptions.seed,
        report: Report = silent,
        **components: Any,
    ) -> "tuple[Tuned, Path]":
        """Chooses a method's noise level, guidance strength and widths on the run's validation
        volumes; measurements are kept in the run, so that the same call goes on.

        Arguments:
            method, overrides, classifier, seed, components: as for `localize`
            grids: what is searched, and where; None takes levels, strengths and parameters
            volumes: most volumes of each part, kept in host memory
            truth: synthetic lesions, or the labels of the validation volumes
            budget: where to stop
            report: receives progress lines

        Returns:
            what was found, and the JSON file in the run

        Raises:
            UsageError: nothing of the method can be tuned, or the run cannot serve it
        """
        from volumediff.tuning.search import Budget
        from volumediff.tuning.tune import DEFAULT, tune

        self.trained.localizes()
        return tune(
            self.trained,
            str(method),
            overrides=[*overrides, *words_of(components)],
            runs={"classifier": classifier},
            grids=DEFAULT if grids is None else grids,
            seed=seed,
            limit=volumes,
            truth=truth,
            budget=Budget() if budget is None else budget,
            report=report,
        )

    def __repr__(self) -> str:
        trained = self.trained
        kind = type(trained.model).__name__
        channels = f"{trained.channels} channel{'s' if trained.channels > 1 else ''}"
        return f"Run({trained.run}, {kind}, {channels}, {trained.checkpoint}, {trained.device})"
