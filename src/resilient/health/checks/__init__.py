"""Checks that come ready made: of this process, and of what it depends on."""

from .memory import ContainerMemory, MemoryGrowth
from .process import CPU, DiskSpace, FileDescriptors, Threads

__all__ = ["CPU", "ContainerMemory", "DiskSpace", "FileDescriptors", "MemoryGrowth", "Threads"]
