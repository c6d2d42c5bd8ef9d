"""Results of a DICOM series as DICOM objects, by highdicom: what archives and viewers open.

series.py          the series that was given, slice by slice
segments.py        findings or labels, as segments with codes and colours
identity.py        unique identifiers that follow from the content, and who made an object
segmentation.py    segments -> Segmentation (PS3.3, A.51)
parametric_map.py  anomaly map -> Parametric Map (PS3.3, A.75)
report.py          measurements of the segments -> structured report by TID 1500 (PS3.16)
write.py           the files of a case
"""
