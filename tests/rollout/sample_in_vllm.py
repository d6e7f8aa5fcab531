"""`drift-rollout sample --config FILE` where vLLM is; vLLM starts its processes from this file anew."""

import sys

from drift_rollout.cli import main

if __name__ == "__main__":
    main(["sample", "--config", sys.argv[1]])
