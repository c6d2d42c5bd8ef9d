"""How well a map finds lesions: voxel-wise, lesion-wise and volume-wise, with intervals."""
