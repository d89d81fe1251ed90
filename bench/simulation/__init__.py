"""Ten minutes of traffic on a clock that stands still: what adaptive limits do, beside what else there is.

Nothing here waits and nothing reads the time of day. The same seed gives the same calls, to the last one, so
that the pictures and tables on the page about adaptive limits can be made again and compared with it.
"""
