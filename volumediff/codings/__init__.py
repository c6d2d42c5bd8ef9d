"""Codings: how the masks of labels become what a model learns, and how they are read back.

signed      one channel per label, 1 inside and -1 (or another code) outside
one_hot     one channel per class, the background first, 1 in that of the voxel's class, else -1
distance    one channel per label, the signed distance from its surface
regions     one channel per region, a union of labels, 1 inside and -1 outside

A recipe that learns labels names one of them; the label values are the recipe's own.
"""
