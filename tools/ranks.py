"""Which of torchrun's processes is this? Without torchrun, the only one."""

import os

RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))  # how many there are
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # the same on this machine
LOCAL_WORLD = int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def say(*words, **how):
    """print, of the first process only."""
    if RANK == 0 and words:
        print(*words, **how)
