"""One contender in a process of its own: takes commands on stdin, one JSON object a line, and
answers each on stdout. Between commands it waits and takes no processor time from the others."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, opened, system_of, threads


def peak_megabytes() -> float:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def done(contender: Contender, command: dict[str, Any]) -> dict[str, Any]:
    """Does what is asked; seconds, and what came out."""
    begun = time.perf_counter()
    if command["do"] == "vision":
        contender.vision(command["images"])
        return {"seconds": time.perf_counter() - begun}
    answer = contender.tokens()
    tokens = [next(answer)]
    first = time.perf_counter() - begun
    if command["do"] == "first":
        return {"seconds": first, "tokens": tokens}
    tokens += itertools.islice(answer, 2)  # the first steps may still be warming up
    begun = time.perf_counter()
    tokens += itertools.islice(answer, command["tokens"])
    return {"seconds": (time.perf_counter() - begun) / command["tokens"], "tokens": tokens}


def main() -> None:
    name, system, folder, dtype = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not pass for an answer

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    torch.set_num_threads(threads())
    try:
        begun = time.perf_counter()
        contender = opened(name, system_of(system), Path(folder), getattr(torch, dtype))
        say({"seconds": time.perf_counter() - begun})
    except Exception as error:  # what a contender cannot do is a finding
        say({"error": str(error).strip().split("\n")[0][:200] or type(error).__name__})
        return
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "memory":
            say({"megabytes": peak_megabytes()})
            continue
        try:
            say(done(contender, command))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}".strip().split("\n")[0][:200]})


if __name__ == "__main__":
    main()
