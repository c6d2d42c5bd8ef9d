"""How an image reaches the denoiser: one file per way, whose image branch runs once per volume."""
