"""What ``import acl`` finds in the children of a program that the runner started: the emulated module.

This folder is on ``PYTHONPATH`` there; it must hold nothing else that could be imported.
"""

import sys

from aioais import emulator

del sys.modules["acl"]  # this file, which the emulated module replaces
emulator.install()
