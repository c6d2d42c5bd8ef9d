"""How well a map finds lesions: by voxel, lesion, box, volume and subgroup; how sure it is."""
