"""The command line: `python -m gloss_utils run FILE... [-p NAME VALUE]... [--from 03] [--until 06] [--force]`.

What a run has: `status FILE...`, `verify RUN`. What is made from it: `figures [RUN...]`, `report RUN`, `results RUN
COMMAND`, `merge RUN FOLDER`. Texts of a server: `fetch-texts FILE... --server ADDRESS`. Does a GPU work: `check-gpu`.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from gloss_utils.base.errors import GlossError, Interrupted
from gloss_utils.runs.given import add_parameters

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130  # the exit status, as shells have it


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _signals_interrupt():
            for line in options.verb(options):
                print(line)
    except (KeyboardInterrupt, GlossError) as error:
        message = "interrupted; the same command starts again" if isinstance(error, KeyboardInterrupt) else str(error)
        print(f"error: {message}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, (KeyboardInterrupt, Interrupted)) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gloss_utils", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="execute the notebooks on files of parameters")
    add_parameters(run)
    run.add_argument("--from", dest="first", metavar="NN", help="first notebook to run, as 03")
    run.add_argument("--until", dest="last", metavar="NN", help="last notebook to run, as 06")
    run.add_argument("--force", action="store_true", help="run stages that are up to date, too, and make all anew")
    run.set_defaults(verb=_run)
    status = commands.add_parser("status", help="what a run has, what it would make again and why, and what it cost")
    add_parameters(status)
    status.set_defaults(verb=_status)
    verify = commands.add_parser("verify", help="read all bytes of a run again, and name what is damaged")
    verify.add_argument("run_dir", metavar="RUN", type=Path)
    verify.set_defaults(verb=_verify)
    figures = commands.add_parser("figures", help="draw the figures and tables of a paper from finished runs")
    figures.add_argument("runs", nargs="*", metavar="RUN", help="run folders or files of results; none: DIR/results")
    figures.add_argument("--to", default="figures", metavar="DIR", help="where figures and tables go")
    figures.set_defaults(verb=_figures)
    report = commands.add_parser("report", help="join the executed notebooks of a run into RUN/report.html")
    report.add_argument("run_dir", metavar="RUN", type=Path)
    report.set_defaults(verb=_report)
    results = commands.add_parser("results", help="write the results of a finished run to a file for `figures`")
    results.add_argument("run_dir", metavar="RUN", type=Path)
    results.add_argument("made_by", metavar="COMMAND", help="what made the run, for whoever wants to make it again")
    results.add_argument("--to", type=Path, metavar="FILE", help="default: figures/results/, named like the run folder")
    results.set_defaults(verb=_results)
    lab = commands.add_parser("lab", help="write notebooks with these parameters to RUN/lab, for JupyterLab")
    add_parameters(lab)
    lab.set_defaults(verb=_lab)
    merge = commands.add_parser("merge", help="write the fine-tuned model as one folder in 16 bits, as vLLM loads it")
    merge.add_argument("run_dir", metavar="RUN", type=Path)
    merge.add_argument("to", metavar="FOLDER", type=Path)
    merge.set_defaults(verb=_merge)
    fetch = commands.add_parser("fetch-texts", help="let a server of the merged model write a queries_file")
    add_parameters(fetch)
    fetch.add_argument("--server", required=True, metavar="ADDRESS", help="OpenAI-compatible, as http://localhost:8000")
    fetch.add_argument("--model", metavar="NAME", help="as the server calls it; default: its first")
    fetch.add_argument("--to", required=True, type=Path, metavar="FILE", help="queries file to write")
    fetch.add_argument("--at-once", type=int, default=16, metavar="N", help="users that are asked for side by side")
    fetch.set_defaults(verb=_fetch_texts)
    gpu = commands.add_parser("check-gpu", help="in minutes: do fine-tuning and generation work on this GPU")
    gpu.add_argument("--shape", default="llama-1b", choices=("llama-1b", "llama-3b", "llama-8b", "15m", "tiny"))
    gpu.add_argument("--tokens", type=int, default=512, metavar="N", help="of each text and prompt")
    gpu.add_argument("--scratch", type=Path, metavar="DIR", help="where the random model is written for a while")
    gpu.set_defaults(verb=_check_gpu)
    cells = commands.add_parser("cells", help="write all parameters and their defaults into the notebooks' first cells")
    cells.set_defaults(verb=_cells)
    return parser


# What the verbs need is loaded when they run: a wrong command line is reported at once.


def _run(options) -> list[str]:
    from gloss_utils.runs import notebooks

    overrides = [tuple(pair) for pair in options.overrides]
    folder = notebooks.run(options.files, overrides, options.first, options.last, options.force)
    return [notebooks.summary(folder)]


def _status(options) -> list[str]:
    from gloss_utils.runs import notebooks, status

    folder, parameters = notebooks.planned(options.files, [tuple(pair) for pair in options.overrides])
    return status.status(folder, parameters)


def _verify(options) -> list[str]:
    from gloss_utils.runs.folder import RunFolder
    from gloss_utils.runs.status import verify

    return verify(RunFolder(options.run_dir.resolve()))


def _figures(options) -> list[str]:
    from gloss_utils.runs import notebooks

    return [f"figures and tables: {notebooks.draw(options.runs, options.to)}"]


def _report(options) -> list[str]:
    from gloss_utils.runs.folder import RunFolder
    from gloss_utils.runs.results import write_report

    folder = RunFolder(options.run_dir.resolve())
    left_out = write_report(folder)
    return [*(f"left out: {stage}, which {reason}" for stage, reason in left_out.items()), str(folder.report)]


def _results(options) -> list[str]:
    from gloss_utils.runs.folder import RunFolder
    from gloss_utils.runs.results import write_results

    return [str(write_results(RunFolder(options.run_dir.resolve()), options.made_by, options.to))]


def _lab(options) -> list[str]:
    from gloss_utils.runs import notebooks

    return notebooks.write_lab(options.files, [tuple(pair) for pair in options.overrides])


def _merge(options) -> list[str]:
    from gloss_utils.runs.export import merge
    from gloss_utils.runs.folder import RunFolder

    return [merge(RunFolder(options.run_dir.resolve()), options.to.resolve())]


def _fetch_texts(options) -> Iterator[str]:
    from gloss_utils.runs import export, notebooks

    folder, parameters = notebooks.planned(options.files, [tuple(pair) for pair in options.overrides])
    return export.fetch_texts(folder, parameters, options.server, options.model, options.to.resolve(), options.at_once)


def _check_gpu(options) -> Iterator[str]:
    from gloss_utils.runs.check_gpu import check

    return check(options.shape, options.tokens, options.scratch)


def _cells(options) -> list[str]:
    from gloss_utils.runs.given import write_cells
    from gloss_utils.runs.parameters import NOTEBOOKS

    write_cells()
    return [f"written into the first cells of {NOTEBOOKS}"]


@contextmanager
def _signals_interrupt():
    """Let the first SIGINT or SIGTERM end the kernels, and raise `KeyboardInterrupt`; later ones change nothing.

    A kernel is killed: what it has finished is on the disk, and it would print a traceback if it were asked to end.
    asyncio would report its death with a traceback at the end of the process, so that log is shut.
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
