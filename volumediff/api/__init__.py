"""The Python interface: images of any library in, results in their voxel order out."""
