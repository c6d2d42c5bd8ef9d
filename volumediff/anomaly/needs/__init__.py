"""What methods and their components ask of a run.

A requirement is data: `info` lists the words with which a configuration trains a run that meets
it, and `Method.check` asks it of a run's model.
"""
