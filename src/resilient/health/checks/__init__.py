"""Checks that come ready made: of this process, and of what it depends on."""

from .database import Database
from .endpoint import HTTPEndpoint
from .event_loop import EventLoopLag
from .memory import ContainerMemory, MemoryGrowth
from .network import DNSName, TCPPort, TLSCertificate
from .process import CPU, DiskSpace, FileDescriptors, Threads
from .redis import RedisServer

__all__ = [
    "CPU",
    "ContainerMemory",
    "DNSName",
    "Database",
    "DiskSpace",
    "EventLoopLag",
    "FileDescriptors",
    "HTTPEndpoint",
    "MemoryGrowth",
    "RedisServer",
    "TCPPort",
    "TLSCertificate",
    "Threads",
]
