"""The child's side of a reward that is a Python function: docs/rewards-protocol.md, version 1.

Elbow hands this text to the interpreter by `-c`. It runs on Python 3.8 or later with Pillow.
"""

import faulthandler
import inspect
import json
import mmap
import os
import queue
import signal
import sys
import threading
import traceback
import types
from collections.abc import Mapping

# Nothing that the user's code prints or reads touches the protocol, not even C code or a program that it starts.
ASKED, ANSWERS = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)

# Before a process that takes too long is killed, Elbow asks it where it is.
faulthandler.register(signal.SIGUSR1)

HERE = inspect.currentframe().f_code.co_filename
LINES = queue.SimpleQueue()


class Trouble(Exception):
    """What went wrong, in words that need no traceback."""


def listen():
    """Passes the lines on. Their end is the end of this process and its children, whatever the user's code does."""
    for line in ASKED:
        LINES.put(line)
    os.kill(0, signal.SIGKILL)


def report(error):
    """What went wrong, with the traceback from the user's code on."""
    if isinstance(error, Trouble):
        return str(error)
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == HERE:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


def short(value):
    text = repr(value)
    return "{} ({})".format(text if len(text) <= 200 else text[:200] + "…", type(value).__name__)


class Reward:
    """The user's file."""

    def __init__(self, file, function, device, groups):
        try:
            from PIL import Image
        except ImportError as error:
            raise Trouble(
                "Pillow is missing ({}): install it with `{} -m pip install pillow`, or set `reward.python` to an "
                "interpreter that has it".format(error, sys.executable)
            )
        self.Image = Image
        self.name = function
        self.file, self.bytes = None, memoryview(b"")

        path = os.path.abspath(file)
        sys.path.insert(0, os.path.dirname(path))
        module = types.ModuleType(os.path.splitext(os.path.basename(path))[0])
        module.__file__ = path
        sys.modules[module.__name__] = module
        with open(path, "rb") as source:
            code = compile(source.read(), path, "exec", dont_inherit=True)
        exec(code, vars(module))

        self.module = module
        self.function = getattr(module, function, None)
        if not callable(self.function):
            there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise Trouble(
                "no function `{}` in {}: set `reward.function` to one of those that are there: {}".format(
                    function, path, ", ".join(there) or "none"
                )
            )
        self.groups = groups and self.takes_groups()
        if not groups and self.takes_groups(needed=True):
            raise Trouble(
                "`{}` takes `groups`: set `reward.whole_groups = true`, or give the argument a default".format(function)
            )
        self.hook("setup", device)

    def takes_groups(self, needed=False):
        try:
            groups = inspect.signature(self.function).parameters.get("groups")
        except (TypeError, ValueError):
            # Some functions of C libraries do not tell.
            return False
        return groups is not None and (not needed or groups.default is inspect.Parameter.empty)

    def hook(self, name, *arguments):
        """Calls a function that the user's file may have."""
        function = getattr(self.module, name, None)
        if callable(function):
            function(*arguments)

    def images(self, pictures, file=None):
        if file is not None:
            self.file, self.bytes = open(file, "rb"), memoryview(b"")
            os.unlink(file)
        spans = [(p["at"], p["at"] + 3 * p["width"] * p["height"], (p["width"], p["height"])) for p in pictures]
        if max(end for _, end, _ in spans) > len(self.bytes):
            self.bytes = memoryview(mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ))
        # Of mode RGB, Pillow makes a copy.
        image = self.Image.frombuffer
        return [image("RGB", size, self.bytes[at:end], "raw", "RGB", 0, 1) for at, end, size in spans]

    def score(self, request):
        images = self.images(request["pictures"], request.get("file"))
        more = {"groups": request["groups"]} if self.groups else {}
        returned = self.function(images, request["prompts"], request["metadata"], **more)
        entries = None if isinstance(returned, (str, bytes, Mapping)) else iterate(returned)
        if entries is None:
            raise Trouble(
                "`{}` returned {}: it returns a list with one entry a picture".format(self.name, short(returned))
            )
        entries = list(entries)
        if len(entries) != len(images):
            raise Trouble(
                "`{}` returned {} scores for {} pictures: it returns one entry a picture, None where there is no "
                "score".format(self.name, len(entries), len(images))
            )
        return [self.entry(entry) for entry in entries]

    def entry(self, value):
        if isinstance(value, Mapping):
            return {str(name): self.number(part) for name, part in value.items()}
        return self.number(value)

    def number(self, value):
        if value is None:
            return None
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            return float(value)
        except Exception:
            raise Trouble(
                "`{}` returned {} as a score: a score is a number, None, or a dict of named numbers".format(
                    self.name, short(value)
                )
            )


def iterate(value):
    try:
        return iter(value)
    except TypeError:
        return None


def serve():
    reward = None
    while True:
        request = json.loads(LINES.get())
        answer = {"id": request["id"]} if "id" in request else {"elbow": 1}
        try:
            if reward is None:
                reward = Reward(**request["python"])
                answer["ready"] = True
            elif request["do"] == "score":
                answer["scores"] = reward.score(request)
            else:
                reward.hook(request["do"])
        except BaseException as error:
            answer["error"] = report(error)
        ANSWERS.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        ANSWERS.flush()


threading.Thread(target=listen, daemon=True).start()
serve()
