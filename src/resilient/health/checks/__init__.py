"""Checks that come ready made: of this process, and of what it depends on."""

from .event_loop import EventLoopLag
from .memory import ContainerMemory, MemoryGrowth
from .process import CPU, DiskSpace, FileDescriptors, Threads
from .redis import RedisServer

__all__ = [
    "CPU",
    "ContainerMemory",
    "DiskSpace",
    "EventLoopLag",
    "FileDescriptors",
    "MemoryGrowth",
    "RedisServer",
    "Threads",
]
