"""The command line: `python -m gloss_utils run FILE... [-p NAME VALUE]... [--from 03] [--until 06] [--force]`."""

import argparse
import sys

from gloss_utils import parameters as P
from gloss_utils.errors import GlossError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gloss_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute the notebooks on parameter files")
    P.add_arguments(run)
    run.add_argument("--from", dest="first", metavar="NN", help="first notebook to run, as 03")
    run.add_argument("--until", dest="last", metavar="NN", help="last notebook to run, as 06")
    run.add_argument("--force", action="store_true", help="run stages that are up to date, too")
    options = parser.parse_args(arguments)
    from gloss_utils import runner  # after the arguments are known to be good: it loads papermill

    try:
        folder = runner.run(
            options.files, [tuple(pair) for pair in options.overrides], options.first, options.last, options.force
        )
    except GlossError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(runner.summary(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
