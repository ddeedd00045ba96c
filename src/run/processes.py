"""What processes of one run have to do with each other."""

import ctypes
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(signum: int) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends; does nothing but on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
