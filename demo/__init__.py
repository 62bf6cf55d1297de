"""The main job from end to end, each step through the public command: `python -m demo`, or `make demo`."""
