"""The run layer: parameters, the run folder and its manifest, one run at a time, headless notebooks, workers.

Only the doors and the command line use it; no other room knows of it. In: parameters, by files, command line or a
notebook's first cell. Out: a `Run`, which a door asks for parameters and paths, and tells what it wrote.
"""

from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.run import Run, open_run

__all__ = ["Run", "RunFolder", "open_run"]
