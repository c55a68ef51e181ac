"""`python -m benchmarks.operators [NAME ...]`: what came of each call on the named networks."""

from __future__ import annotations

import sys

from benchmarks.operators import CASES, measured

if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in CASES]
    if unknown:
        sys.exit(f"No network {unknown[0]!r}. There are: {', '.join(CASES)}.")
    for record in measured(sys.argv[1:] or list(CASES)):
        value = record.get("log10_prob")
        print(
            f"{record['case']:<22} {record['call']:<14} {record['outcome']:<9} {record.get('status', ''):<15}"
            f" {'' if value is None else f'{value:.2f}':>7} of {record['truth']:.2f} {record['seconds']:>5}s "
            f"{record.get('note', '')[:160]}",
            flush=True,
        )
