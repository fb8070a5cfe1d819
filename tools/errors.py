"""What can go wrong, in one line: which file or flag, what was found, what was expected, what to
do."""

import argparse
import functools
import os
import signal
import sys
import threading
import traceback

from tqdm import tqdm

from .ranks import WORLD


class Problem(Exception):
    """Something that the user can mend."""


def fail(message, cause=None):
    """Raise a Problem. message: one line, as in this file's docstring; cause: what showed it."""
    raise Problem(message) from cause


def interrupt(number, _):
    raise KeyboardInterrupt(number)


def explain(error):
    """(line, exit status) of an exception that ends a script.

    Status 2: something to mend; 130 and 143: Ctrl-C and SIGTERM; 1: an error that nobody foresaw.
    """
    if isinstance(error, Problem):
        return f"error: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        number = error.args[0] if error.args else signal.SIGINT
        return "interrupted; what was there before is as it was", 128 + number
    if isinstance(error, ModuleNotFoundError):
        return f"error: {error}: put it beside the scripts, or pip install it", 2
    if isinstance(error, OSError):
        return f"error: {error.filename or 'a file'}: {error.strerror or error}", 2
    return f"error: unexpected {type(error).__name__}: {error} (--debug shows where)", 1


def prepare_streams():
    """A path that a terminal cannot show is no reason to stop; SIGTERM is answered like Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


def script(main):
    """Decorator of a script's main(argv=None): whatever goes wrong ends in one line on stderr, with
    a traceback only under --debug, and an exit status; see `explain`."""

    @functools.wraps(main)
    def run(argv=None, *more):
        prepare_streams()
        try:
            return main(argv, *more)
        except BrokenPipeError:  # nobody reads on, as after | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (Exception, KeyboardInterrupt) as error:
            line, status = explain(error)
            if "--debug" in (sys.argv if argv is None else argv):
                traceback.print_exception(type(error), error, error.__traceback__)
        for bar in list(getattr(tqdm, "_instances", ())):  # leave progress bars, and write below
            bar.close()
        print(" ".join(line.split()), file=sys.stderr, flush=True)
        if WORLD > 1:  # the others may be waiting for this process: leave at once
            os._exit(status)
        sys.exit(status)

    return run


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are Problems, in one line; and with --debug, see `script`."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.add_argument("--debug", action="store_true", help="show where an error came from")

    def error(self, message):
        fail(f"{message}; {self.prog} --help lists the flags")


def named(text):
    """The name of a file or folder, for argparse: not empty, as an unset shell variable is."""
    return text or fail("a flag that names a file or folder is empty; name one, or leave it out")
