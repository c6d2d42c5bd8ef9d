"""`volumediff findings`: what was found in a folder of results, as JSON, packets and a page."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.layouts import known_layout
from volumediff.commands._options import Channels, LayoutOption, names_of, out_line, spec_of
from volumediff.commands._written import WrittenFiles
from volumediff.terminal.messages import problem

__all__ = ["findings"]


def findings(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of results of localize or segment.")
    ],
    images: Annotated[
        list[Path],
        typer.Option(
            "--images",
            help="Volume, folder or datalist that was localized or segmented; may be repeated.",
        ),
    ],
    channels: Channels = None,
    layout: LayoutOption = "auto",
    packets: Annotated[
        bool,
        typer.Option(
            "--packets", help="Write pictures and a prompt per finding, for a reader or a VLM."
        ),
    ] = False,
    most: Annotated[
        int,
        typer.Option(
            "--most", min=1, help="Largest number of packets per case, the most urgent first."
        ),
    ] = 10,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Write OUT/findings.html with every case; no truth is needed."
        ),
    ] = False,
) -> None:
    """List what was found, finding by finding, measured again beside the images.

    volumediff findings out/ --images DATA --packets --report
    """
    from volumediff.inference.findings import find_in_folder
    from volumediff.reporting.findings_page import Gallery

    written, gallery, page = WrittenFiles(folder), Gallery(folder), None
    work = find_in_folder(
        folder,
        images,
        channels=names_of(channels),
        layout=known_layout(spec_of(layout)),
        packets=packets,
        most=most,
        look=gallery.add if report else lambda written, found: None,
        report=out_line,
    )
    if work.packets:
        out_line(f"{len(work.packets)} packets in {folder / 'findings'}")
    if report and work.done:
        page = gallery.write()
    written.finish(look=page, then="" if report else "the same with --report, for a page of it")
    for case, reason in work.failed.items():
        problem(f"volumediff: {case}: {reason}")
    if work.failed:
        raise typer.Exit(1)
