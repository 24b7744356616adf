"""Test kit of umdev: fixtures, conformance checks, real guests, bench."""
