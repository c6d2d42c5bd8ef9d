"""Pretexts: what an encoder can learn from volumes without labels.

rotation    which way round a volume is
jigsaw      in which order its pieces were
simclr      which of several views show the same place
moco        the same, against a queue of the views of other volumes
byol        what an averaged copy of the encoder says about another view
mae         what hidden cells look like
"""
