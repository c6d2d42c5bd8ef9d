"""FreeSurfer's numbers for the structures of a brain, and the tissue that each is made of.

Left and right of a structure share a name. Numbers of the cortical parcellations (1000 to 1035 and
2000 to 2035) are cortex. SynthSeg's label maps number what lies outside of the brain from 501 on.

References:
    Fischl et al. (2002), Whole brain segmentation; FreeSurferColorLUT.txt
    Billot et al. (2023), SynthSeg, Medical Image Analysis
"""

from typing import Literal, NamedTuple

__all__ = ["Structure", "structure"]

Tissue = Literal["csf", "grey", "deep", "white"]


class Structure(NamedTuple):
    """A structure of the brain.

    Arguments:
        name: without its side
        tissue: `deep` is grey matter that lies between grey and white in most contrasts
    """

    name: str
    tissue: Tissue


_STRUCTURES = {
    (2, 41): Structure("cerebral white matter", "white"),
    (3, 42): Structure("cerebral cortex", "grey"),
    (4, 43): Structure("lateral ventricle", "csf"),
    (5, 44): Structure("inferior lateral ventricle", "csf"),
    (7, 46): Structure("cerebellar white matter", "white"),
    (8, 47): Structure("cerebellar cortex", "grey"),
    (10, 49): Structure("thalamus", "deep"),
    (11, 50): Structure("caudate", "grey"),
    (12, 51): Structure("putamen", "grey"),
    (13, 52): Structure("pallidum", "deep"),
    (14,): Structure("third ventricle", "csf"),
    (15,): Structure("fourth ventricle", "csf"),
    (16,): Structure("brain stem", "white"),
    (17, 53): Structure("hippocampus", "grey"),
    (18, 54): Structure("amygdala", "grey"),
    (24,): Structure("cerebrospinal fluid", "csf"),
    # lesions of an ageing brain, as they lie in white matter
    (25, 57): Structure("cerebral white matter", "white"),
    (26, 58): Structure("accumbens", "grey"),
    (28, 60): Structure("ventral diencephalon", "deep"),
    (30, 62): Structure("vessel", "csf"),
    (31, 63): Structure("choroid plexus", "grey"),
    (72,): Structure("fifth ventricle", "csf"),
    (77, 78, 79): Structure("white matter hypointensity", "white"),
    (80, 81, 82): Structure("grey matter hypointensity", "grey"),
    (85,): Structure("optic chiasm", "white"),
    # basal forebrain and claustrum as SynthSeg's maps have them
    (136, 137): Structure("basal forebrain", "grey"),
    (163, 164): Structure("claustrum", "grey"),
    (192, 251, 252, 253, 254, 255): Structure("corpus callosum", "white"),
}
_BY_NUMBER = {number: s for numbers, s in _STRUCTURES.items() for number in numbers}
_CORTEX = _BY_NUMBER[3]
_OUTSIDE = range(500, 600)


def structure(number: int) -> Structure | None:
    """The structure of a number; None for background and what lies outside of the brain.

    Raises:
        KeyError: the number is not one of FreeSurfer's that are known here
    """
    if number == 0 or number in _OUTSIDE:
        return None
    if number in range(1000, 1036) or number in range(2000, 2036):
        return _CORTEX
    return _BY_NUMBER[number]
