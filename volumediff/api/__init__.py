"""The Python interface: images of any library in, results in their own voxel order out."""
