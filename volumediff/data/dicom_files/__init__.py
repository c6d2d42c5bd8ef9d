"""Inside of a DICOM series: which files belong to it, where its slices lie, what they hold.

`child` is the process in which `data.dicom` has these foreign bytes parsed, within bounds.
"""
