"""Requirements of methods and their components on a run.

A requirement is data: `info` lists the overrides with which a configuration trains a run that
meets it, and `Method.check` checks the model of a run against it.
"""
