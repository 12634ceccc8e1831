"""Not to be installed: the scripts, and ckpts/ beside them, are used where they are."""

raise SystemExit(
    "NoiseTransfer is not installed but used from its folder: pip install -r requirements.txt, "
    "then run its scripts, or from elsewhere "
    'torch.hub.load("THIS/FOLDER", "noise_transfer", source="local")'
)
