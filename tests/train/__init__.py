"""A package, so that `train` is this one and not the script of that name in benchmarks/."""
