"""The command line: a verb, then key=value. Exit codes: 0 done, 1 failed, 2 wrong request, 130 interrupted."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from xdistill import __version__
from xdistill.errors import UsageError, XDistillError
from xdistill.registry import nearest

#: verb -> (module with run(args) -> int, one line). Modules are imported when their verb is used.
VERBS = {
    "fit": ("xdistill.cli.fit", "distil a teacher into a few-step student (or train a teacher)"),
    "generate": ("xdistill.cli.generate", "draw samples from a student into files"),
    "extract": ("xdistill.cli.extract", "take samples out of packed shards, as single files"),
    "evaluate": ("xdistill.cli.evaluate", "measure samples of checkpoints or folders, with intervals"),
    "bench": ("xdistill.cli.bench", "time the student against its teacher"),
    "search-steps": ("xdistill.cli.search_steps", "place the calls of a flow map's sampler where they count"),
    "list": ("xdistill.cli.listing", "the domains and objectives there are"),
    "doctor": ("xdistill.cli.doctor", "check this machine, a teacher or a run"),
}
FLAGS = ("--help", "-h", "--debug", "--version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors become one line on stderr. Returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        return _dispatch([a for a in args if a != "--debug"])
    except KeyboardInterrupt:
        return _interrupted(args)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # how Lightning leaves on Ctrl-C
            return _interrupted(args)
        raise
    except XDistillError as error:
        return _failed(str(error), error.exit_code, debug)
    except BrokenPipeError:  # `| head` has seen enough; point stdout elsewhere, or Python complains when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # a user sees one line whatever went wrong; --debug shows where
        text = f"{type(error).__name__}: {error}"
        hint = "" if isinstance(error, OSError) else " (a bug? --debug shows where)"
        return _failed(text + hint, 1, debug)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("--help", "-h"):
        print(usage())
        return 0 if args else 2
    if args[0] == "--version":
        print(f"xdistill {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        raise UsageError(f"unknown verb '{verb}'{nearest(verb, VERBS)}")
    if "--help" in rest or "-h" in rest:
        from xdistill.cli.help import verb_help

        print(verb_help(verb, [a for a in rest if a not in FLAGS]))
        return 0
    if unknown := [a for a in rest if a.startswith("-")]:
        raise UsageError(f"unknown option '{unknown[0]}': {verb} takes key=value, --help and --debug")
    return import_module(VERBS[verb][0]).run(rest)


def usage() -> str:
    """What `xdistill --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in VERBS.items())
    return (
        f"xdistill {__version__}: few-step generation for everything that is not a plain image\n\n"
        f"usage: xdistill VERB [key=value ...] [--help] [--debug] [--version]\n\n{verbs}\n\n"
        "  xdistill fit domain=protein\n"
        "  xdistill generate domain=protein ckpt=runs/protein_sid num=16\n"
        "  xdistill fit --help"
    )


def _failed(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"xdistill: error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _interrupted(args: Sequence[str]) -> int:
    again = [a for a in args if not a.startswith("resume=")]
    if again[:1] == ["fit"]:
        again.append("resume=auto")
    if again[:1] in (["fit"], ["generate"]) and not {"out=-", "stream=true"} & {a.lower() for a in again}:
        print(f"\nxdistill: interrupted; continue with: xdistill {shlex.join(again)}", file=sys.stderr)
    else:
        print("\nxdistill: interrupted", file=sys.stderr)
    return 130
