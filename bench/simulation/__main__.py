"""Play the stories, and write their tables and pictures into the docs.

python -m bench.simulation           writes them
python -m bench.simulation --check   exit status 1 if those in the docs are not what is simulated now
"""

from __future__ import annotations

import argparse
import sys
import time

from bench.simulation import page


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulation", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check: bool = parser.parse_args().check
    began = time.perf_counter()
    made = {page.PICTURES / name: text for name, text in page.pictures().items()}
    made[page.PAGE] = page.with_tables(page.PAGE.read_text())
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    for name, table in page.TABLES.items():
        print(f"{name}\n\n{table()}\n")
    for path in stale:
        print(f"{'differs' if check else 'written'}: {path.relative_to(page.ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path])
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
