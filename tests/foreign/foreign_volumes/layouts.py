"""A data set with one numbered folder per subject: scan.nii.gz, and tumour.nii.gz in some."""

from dataclasses import dataclass

from volumediff.data.cases import Case, Problem
from volumediff.data.layouts._base import Layout


@dataclass(frozen=True)
class Numbered(Layout):
    """One numbered folder per subject: scan.nii.gz, and tumour.nii.gz where there is one."""

    def recognises(self, root):
        return root.is_dir() and any(root.glob("[0-9]*/scan.nii.gz"))

    def read(self, root):
        cases, problems = [], []
        for folder in sorted(p for p in root.iterdir() if p.is_dir()):
            scan, tumour = folder / "scan.nii.gz", folder / "tumour.nii.gz"
            if scan.is_file():
                label = tumour if tumour.is_file() else None
                cases.append(Case(folder.name, folder.name, {"image": scan}, label))
            else:
                problems.append(Problem(folder.name, "has no scan.nii.gz."))
            for path in sorted(folder.glob("*.nii*")):
                if path not in (scan, tumour):
                    problems.append(Problem(folder.name, f"{path.name} is not of this layout."))
        return cases, problems
