"""Compiling while nothing is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qa_jax.generate.engine import Engine


@contextmanager
def background_warm_up(engine: Engine) -> Iterator[threading.Thread]:
    """`Engine.warm_up` in a thread that waits while there are requests; leaving the context, or the
    end of the program, ends it after the program that it is compiling."""
    stopped = threading.Event()

    def work() -> None:
        for compile_one in engine.compilations():
            while engine.num_running() or engine.num_waiting():
                time.sleep(0.05)
            if stopped.is_set() or not threading.main_thread().is_alive():
                return
            compile_one()

    thread = threading.Thread(target=work, name="warm-up")
    thread.start()
    try:
        yield thread
    finally:
        stopped.set()
        thread.join()
