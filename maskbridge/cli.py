"""The command line: `maskbridge COMMAND …`. The modules of the folders `commands/` are it (see `plugins`).

Exit 0: done. 1: something the user gave cannot be used, told in one line on standard error. 2: usage. 130: interrupted.
141: nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from maskbridge import __version__, plugins
from maskbridge.errors import MaskbridgeError, OptionError, printable
from maskbridge.folders import file_of
from maskbridge.progress import QUIET_VARIABLE

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNFIT = (
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ELOOP,
    errno.ENXIO,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see the module's docstring for the exit codes."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    if argv is None:  # as a program: what was made for a while goes away also when it is told to stop
        _open_standard_streams()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding has no letters for is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser(words).parse_args(words)
        _refuse_loops(arguments)
        if arguments.quiet:
            os.environ[QUIET_VARIABLE] = "1"
        code = int(plugins.load("command", arguments.command).run(arguments))
        sys.stdout.flush()
        return code
    except MaskbridgeError as error:
        print(f"maskbridge: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("maskbridge: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 128 + signal.SIGPIPE
    except UnicodeEncodeError as error:
        if error.encoding.lower() == "utf-8":
            raise
        found = f"{error.object[error.start : error.end]!a} in {error.encoding}"
        print(f"maskbridge: the locale has no letters for a name; found {found}; set PYTHONUTF8=1", file=sys.stderr)
    except OSError as error:
        if error.errno not in (*_FULL, *_UNFIT):
            raise
        remedy = "free some space" if error.errno in _FULL else "choose a place that can be written"
        line = f"{file_of(error) or 'a file'}: {error.strerror}; {remedy}"
        print(f"maskbridge: {printable(line)}", file=sys.stderr)
    return 1


def _open_standard_streams() -> None:
    """Give streams that were closed by who started the program a place to go, before a file gets their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _nobody_reads() -> bool:
    """Whether standard output has lost its reader, as behind `| head`; what is left for it then goes nowhere."""
    output = select.poll()
    output.register(1)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _refuse_loops(arguments: argparse.Namespace) -> None:
    """Links that lead to themselves, in whatever names a place."""
    for value in vars(arguments).values():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path):
                try:
                    path.resolve()
                except RuntimeError as error:
                    raise OptionError("is a link to itself", where=path) from error


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="maskbridge",
        description="From pixel masks to a fine-tuned detector and segmenter, and one comparison.",
    )
    parser.add_argument("--version", action="version", version=f"maskbridge {__version__}")
    parser.set_defaults(quiet=False)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    command = next((word for word in argv if not word.startswith("-")), "")
    for name in plugins.names("command"):
        text = plugins.summary("command", name)
        sub = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
        sub.add_argument("--quiet", action="store_true", help="print results and errors only")
        if name == command:
            plugins.load("command", name).add_arguments(sub, argv[argv.index(command) + 1 :])
    return parser
