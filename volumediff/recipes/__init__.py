"""Recipes: what a model learns from a volume, one file per recipe.

healthy              p(x)              x the volume itself
class_conditional    p(x | class)      the class from an attribute, dropped at times for guidance
modality_conditional p(x | modality)   the modality from an attribute, dropped at times
label_diffusion      p(m | x)          m the labels, one channel per class, x the image
synthetic_anomalies  p(m | x')         m where a synthetic anomaly was put, x' the volume with it
degradation          x from x'         a cold kernel between the volume and a degraded one
local_noise          p(x_M | x)        noise in a region M alone, clean tissue around it
inpainting           p(x | void, M)    the volume given what surrounds a void
voided               p(x | void, M)    the same, with the void shown as a volume of its own
translation          p(x_T | x_S)      channels T of the volume given the others S
modality_cycle       p(x | x_i)        the volume given one of its channels, forth and back

The recipe is part of the checkpoint: a localization method says which one it needs.
"""
