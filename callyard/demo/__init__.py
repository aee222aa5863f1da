"""The demo: the main job end to end on real parts, told as it happens."""
