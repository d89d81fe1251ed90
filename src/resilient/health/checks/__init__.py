"""Checks that come ready made: of this process, and of what it depends on."""

from .database import Database
from .event_loop import EventLoopLag
from .memory import ContainerMemory, MemoryGrowth
from .process import CPU, DiskSpace, FileDescriptors, Threads
from .redis import RedisServer

__all__ = [
    "CPU",
    "ContainerMemory",
    "Database",
    "DiskSpace",
    "EventLoopLag",
    "FileDescriptors",
    "MemoryGrowth",
    "RedisServer",
    "Threads",
]
