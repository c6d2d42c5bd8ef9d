"""What differs between Linux, macOS and Windows; nothing else asks which system it runs on.

file_locks    locks of open files, which the system gives back when a process ends
folders       names made durable, links that are not followed, files that are open elsewhere
file_names    names that a folder cannot hold, or holds as one
stop_signals  which signals ask a program to end
resources     cores, memory, and limits on it; whether a process is alive
"""

import os
import sys

__all__ = ["MACOS", "WINDOWS"]

WINDOWS = os.name == "nt"
MACOS = sys.platform == "darwin"
