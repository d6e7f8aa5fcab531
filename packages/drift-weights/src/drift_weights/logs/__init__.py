"""Foreign logs: one reader a format, all giving the same few values."""

from drift_weights.logs.opened import OpenLog
from drift_weights.logs.opening import first_record, open_log
from drift_weights.logs.reader import Dialogue, LogFormat, LogReader, Outcome, Row

__all__ = ["Dialogue", "LogFormat", "LogReader", "OpenLog", "Outcome", "Row", "first_record", "open_log"]
