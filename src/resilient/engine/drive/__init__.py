"""Every wrapper in the library that calls, awaits or iterates user code.

One module for each family of policy, in it one function for each shape of callable; a policy brings only its
decisions. What a guarded call needs is bound once, at decoration, and the good case is straight-line code.

- `gates`: let a call in, and learn how it ended (breaker, timeout).
- `loops`: may call again (retry).
- `rescues`: may answer in the call's place (fallback).
- `bounds`: limit how long each step of a stream may take (timeout on generators).
- `lookups`: may know the answer already (cache).
- `streams`: how generators of both colours are handed through.
"""
