"""Files in, arrays with geometry out: volumes, cases, splits, preprocessing and checks.

Orientation is fixed at one place (`volume`): every array in memory has its axes along R, A, S.
"""
