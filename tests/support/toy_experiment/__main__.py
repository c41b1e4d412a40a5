"""``python -m support.toy_experiment [key=value ...]``."""

from support.toy_experiment import TOY

from pipeline.entry import start

start(TOY)
