"""Segmentation with trained runs: methods, and the parts that they are made of.

result.py            probabilities, their spread, and the label map
segmenters/          methods as classes: the contract, and the method that is made of parts
draw.py              one member of an ensemble
predictors/          what a run says about a volume: samples, one step, a direct answer
label_ensembles.py   what is varied beside the seed: flips, times, levels of agreement
label_fusions.py     how the members become probabilities
label_posts.py       what is done to the finished labels
method_files.py      methods as YAML files
"""
