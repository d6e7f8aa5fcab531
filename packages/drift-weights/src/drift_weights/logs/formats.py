"""The formats, the most telling first: a log is taken for the first one that fits."""

from drift_weights.logs.chat import CHAT
from drift_weights.logs.drift_jsonl import DRIFT
from drift_weights.logs.inspect_ai import INSPECT
from drift_weights.logs.lm_eval import LM_EVAL
from drift_weights.logs.prime_rl import PRIME_RL
from drift_weights.logs.skyrl import SKYRL
from drift_weights.logs.table import TABLE
from drift_weights.logs.tau_bench import TAU_BENCH
from drift_weights.logs.trl import TRL
from drift_weights.logs.verifiers import VERIFIERS
from drift_weights.logs.verl import VERL

FORMATS = (DRIFT, VERIFIERS, PRIME_RL, TRL, VERL, SKYRL, LM_EVAL, TAU_BENCH, INSPECT, CHAT, TABLE)
