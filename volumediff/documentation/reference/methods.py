"""The reference of methods: what each is, where it runs, what it needs, from its file."""

from collections.abc import Callable, Mapping, Sequence

from volumediff import config
from volumediff.config.listing import summary
from volumediff.documentation import method_matrix
from volumediff.documentation.reference.markdown import code, page, table

__all__ = ["localization", "segmentation", "translation"]

YES, NO = "✓", "–"
LOCALIZATION = """A localization method is a composition of components, written as a YAML file in
`configs/anomaly`. `volumediff localize --method NAME` takes its name, or a file of your own; words
such as `sampler.steps=10` override its keys. A tick says that runs of the pipeline's shipped
configuration serve the method, once they are trained with what stands under "run"; the last column
is for runs of `configs/autoencoders`."""
SEGMENTATION = """A segmentation method is a YAML file in `configs/segmentation`. Its first half
says how a run is trained (`volumediff train PIPELINE method=NAME recipe.labels=[1]
data.root=DATA`), its second how the run is asked (`volumediff segment --run RUN`). A tick says
that the method can be trained and used on the pipeline as shipped. Discrete kernels run in latents
of bits,
`space.autoencoder=binary_64`."""
TRANSLATION = """A translation method is a YAML file in `configs/translation`. Its first half says
how a run is trained (`volumediff train PIPELINE method=NAME data.channels=[T1w,FLAIR]
recipe.targets=[FLAIR] data.root=DATA`), its second how missing channels are drawn
(`volumediff translate --run RUN`). Baselines ask no network; they learn from the run's training
part."""


def localization() -> str:
    """The page of localization methods."""
    from volumediff.anomaly.method_files import read_method

    found = method_matrix.localization()
    return _page(
        "Localization methods",
        LOCALIZATION,
        "anomaly",
        found,
        needs=lambda name: method_matrix.needs_of(read_method(name)),
    )


def segmentation() -> str:
    """The page of segmentation methods."""
    return _page(
        "Segmentation methods", SEGMENTATION, "segmentation", method_matrix.segmentation()
    )


def translation() -> str:
    """The page of translation methods."""
    return _page("Translation methods", TRANSLATION, "translation", method_matrix.translation())


def _page(
    title: str,
    lead: str,
    folder: str,
    found: Mapping[str, Mapping[str, str]],
    needs: Callable[[str], Sequence[str]] | None = None,
) -> str:
    columns = list(next(iter(found.values())))
    rows = []
    for name, where in found.items():
        ticks = [YES if where[column] == "ok" else NO for column in columns]
        run = [] if needs is None else [", ".join(code(word) for word in needs(name))]
        rows.append([f"[{name}](#{name})", _sentence(folder, name), *run, *ticks])
    headings = ["method", "what it does", *([] if needs is None else ["run"]), *columns]
    parts = [_method(folder, name, where) for name, where in found.items()]
    return page(title, lead, table(headings, rows), *parts)


def _method(folder: str, name: str, where: Mapping[str, str]) -> str:
    path = config.config_path(folder, name)
    refused = [f"- {place}: {why}" for place, why in where.items() if why != "ok"]
    parts = [f"## {name}", _prose(config.head(path))]
    if refused:
        parts += ["Where it does not run:", "\n".join(refused)]
    return "\n\n".join(parts)


def _sentence(folder: str, name: str) -> str:
    return summary(config.head(config.config_path(folder, name)))


def _prose(text: str) -> str:
    """The comment that a file begins with; its commands, which are set in, as code."""
    lines = [code(s.strip()) + "  " if s.startswith("  ") else s for s in text.splitlines()]
    return "\n".join(lines)
