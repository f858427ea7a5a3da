"""
Benchmarks with the bare limit measured in the same run: `make bench`, or `python -m tests.bench [NAME ...] [--quick] [--json]`.

A bare limit does the same reads and acknowledged writes with the same libraries and no logic: what is lost between the two
is what Paidan costs. Figures of different machines, or of different runs, do not compare; the ratios do.
"""
