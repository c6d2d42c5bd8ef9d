"""Segmentation methods as classes; nearly all methods are one of them, with other parts.

composed    a predictor, the members that it is asked for, and what is made of them
"""
