"""A package, so that `rollout` is this one and not the script of that name in benchmarks/."""
