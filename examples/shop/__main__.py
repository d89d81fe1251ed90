"""`python -m examples.shop` plays the demo."""

from __future__ import annotations

import sys

from examples.shop.demo import main

if __name__ == "__main__":
    sys.exit(main())
