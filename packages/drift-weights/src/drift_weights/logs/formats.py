"""The formats, the most telling first: a log is taken for the first one that fits."""

from drift_weights.logs.table import TABLE
from drift_weights.logs.verl import VERL

FORMATS = (VERL, TABLE)
