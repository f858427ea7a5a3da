"""The tests, under the same names as what they test; `tests.bench` measures."""
