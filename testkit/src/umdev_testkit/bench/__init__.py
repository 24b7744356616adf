"""`umdev bench`: every number beside its bare-C floor, measured in the same run."""
