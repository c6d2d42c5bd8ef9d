"""Files of a run: written whole, hashed, and verified when they are read.

digests     the one SHA-256
locks       one process at a time; several, and those who wait
atomic      one file, whole or not there
seal        a text that ends with its own digest: JSON, lines of JSON, YAML
records     JSON that is read back through a model of its fields
tensors     safetensors, streamed to the disk; alone, or sealed with a record
folder      several files that appear together, under a manifest
checkpoint, cache   folders of that kind
"""
