"""The command line: `python -m gloss_utils run FILE... [-p NAME VALUE]... [--from 03] [--until 06] [--force]`, and
`python -m gloss_utils figures [RUN...] [--to DIR]`."""

import argparse
import logging
import signal
import sys
import threading
from contextlib import contextmanager

import psutil

from gloss_utils.base.errors import GlossError, Interrupted
from gloss_utils.runs import parameters as P

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130  # the exit status, as shells have it


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gloss_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute the notebooks on parameter files")
    P.add_arguments(run)
    run.add_argument("--from", dest="first", metavar="NN", help="first notebook to run, as 03")
    run.add_argument("--until", dest="last", metavar="NN", help="last notebook to run, as 06")
    run.add_argument("--force", action="store_true", help="run stages that are up to date, too")
    figures = commands.add_parser("figures", help="draw a paper's figures and tables from finished runs")
    figures.add_argument("runs", nargs="*", metavar="RUN", help="run folders or files of results; none: DIR/results")
    figures.add_argument("--to", default="figures", metavar="DIR", help="where figures and tables go")
    options = parser.parse_args(arguments)
    try:
        with _signals_interrupt():
            from gloss_utils.runs import runner  # after the arguments are known to be good: it loads papermill

            if options.command == "figures":
                print(f"figures and tables: {runner.draw(options.runs, options.to)}")
                return 0
            folder = runner.run(
                options.files, [tuple(pair) for pair in options.overrides], options.first, options.last, options.force
            )
    except (KeyboardInterrupt, GlossError) as error:
        message = "interrupted; the same command starts again" if isinstance(error, KeyboardInterrupt) else str(error)
        print(f"error: {message}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, (KeyboardInterrupt, Interrupted)) else 1
    print(runner.summary(folder))
    return 0


@contextmanager
def _signals_interrupt():
    """Let the first SIGINT or SIGTERM end the kernels, and raise `KeyboardInterrupt`; later ones change nothing.

    A kernel is killed: what it has finished is on the disk, and asked to end it would print a traceback first. That it
    died is known then, and not worth the traceback with which asyncio would tell it at the end of the process.
    """

    def interrupt(number, frame):
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        logging.getLogger("asyncio").disabled = True
        for kernel in psutil.Process().children():
            kernel.kill()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where no signal can be caught
        yield
        return
    before = [signal.signal(each, interrupt) for each in SIGNALS]
    try:
        yield
    finally:
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)


if __name__ == "__main__":
    sys.exit(main())
