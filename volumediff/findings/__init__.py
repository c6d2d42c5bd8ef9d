"""Findings of a localization, in words and numbers that can be read without the volumes.

written.py    the outputs of one case, read back from the folder
schema.py     <case>_desc-anomaly_findings.json, field by field
place.py      where a finding lies in the foreground; mni.py where it lies in a template
regions.py    from masks and maps to findings; urgency.py in which order to look at them
panels.py     pictures of one finding; prompt.py the text beside them
packet.py     both as a folder that can be handed to a vision-language model
work.py       all of it for a folder of results
"""
